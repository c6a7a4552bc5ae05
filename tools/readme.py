"""README.md from nbs/index.ipynb, without Quarto.

    python tools/readme.py            write README.md, and pictures of cells into README_files/
    python tools/readme.py --check    say whether README.md is what would be written

Front matter and hidden cells are left out; links that are relative to `nbs/` are made relative to the top.
"""

import base64
import re
import sys
from pathlib import Path

from notebooks import DIRECTIVE, NBS, ROOT, Cell, joined, read

INDEX, README = NBS / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit that notebook, not this file. -->"
LINK = re.compile(r"(\]\(|(?:src|href)=\")(?![a-z]+:|#|/)([^)\"\s]+)")


def from_top(text: str) -> str:
    "Links as seen from the top folder instead of from `nbs/`."
    return LINK.sub(lambda m: m[1] + (m[2][3:] if m[2].startswith("../") else f"nbs/{m[2]}"), text)


def picture(cell: Cell, n: int, data: dict, files: dict) -> str:
    "A markdown link to a cell's picture, whose bytes go into `files`."
    name = f"README_files/cell-{cell.n}-{n}.png"
    files[ROOT / name] = base64.b64decode(joined(data["image/png"]))
    return f"![{cell.alt or ''}]({name})"


def output(cell: Cell, n: int, out: dict, files: dict) -> str:
    "One stored output as markdown."
    data = out.get("data", {})
    if "image/png" in data:
        return picture(cell, n, data, files)
    if "text/markdown" in data:
        return joined(data["text/markdown"])
    text = joined(out.get("text") or data.get("text/plain", "")).rstrip("\n")
    return "\n".join("    " + line for line in text.split("\n")) if text else ""


def code(cell: Cell, files: dict) -> list[str]:
    "A code cell and its outputs as pieces of markdown."
    if cell.hidden:
        return []
    source = DIRECTIVE.sub("", cell.source).strip()
    shown = source and not cell.directives & {"echo: false", "hide_input"}
    pieces = [f"```python\n{source}\n```"] if shown else []
    if not cell.directives & {"output: false", "hide_output"}:
        pieces += [output(cell, n, out, files) for n, out in enumerate(cell.outputs)]
    return pieces


def render(cells: list[Cell]) -> dict[Path, bytes]:
    "Every file of the README, with what it holds."
    files, pieces = {}, []
    for cell in cells:
        if cell.kind == "markdown":
            pieces.append(from_top(cell.source.strip()))
        elif cell.kind == "code":
            pieces += code(cell, files)
    pieces.insert(1, NOTE)
    files[README] = ("\n\n".join(piece for piece in pieces if piece) + "\n").encode()
    return files


def different() -> list[str]:
    "Files that are not what they should be."
    files = render(read(INDEX))
    return [
        f"{path.relative_to(ROOT)}: not what nbs/index.ipynb makes; run `make readme`"
        for path, content in files.items()
        if not path.exists() or path.read_bytes() != content
    ]


if __name__ == "__main__":
    if "--check" in sys.argv:
        found = different()
        print("\n".join(found) or "README.md agrees with nbs/index.ipynb")
        sys.exit(1 if found else 0)
    for path, content in render(read(INDEX)).items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        print("wrote", path.relative_to(ROOT))
