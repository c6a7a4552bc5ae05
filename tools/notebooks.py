"""Reading notebooks: cells, directives, front matter, which files there are."""

import ast
import json
import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PACKAGE = ROOT / "deepclust_nb"

DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.+?)\s*$", re.M)
# Cells that no test runs: they keep the output they have
NOT_RUN = {"slow", "gpu", "notest", "eval: false"}
# Cells that no page shows
HIDDEN = {"hide", "include: false"}


@dataclass
class Cell:
    "One cell of a notebook."

    n: int  # Position in the notebook, from 0
    kind: str  # 'code', 'markdown' or 'raw'
    source: str
    outputs: list = field(default_factory=list)
    tags: tuple = ()
    attachments: tuple = ()

    @property
    def directives(self) -> set[str]:
        "The words after `#|`, such as 'export' or 'eval: false'."
        return set(DIRECTIVE.findall(self.source)) if self.kind == "code" else set()

    @property
    def exported(self) -> bool:
        return any(line.split()[0] in ("export", "exporti", "exports") for line in self.directives)

    @property
    def skipped(self) -> bool:
        return bool(self.directives & NOT_RUN)

    @property
    def hidden(self) -> bool:
        "Whether the page shows neither the code nor what it gave."
        return bool(self.directives & HIDDEN)

    @property
    def alt(self) -> str | None:
        "The text for those who do not see the picture; None without one, or where it is no YAML."
        # Quarto reads options only above the code
        lines = takewhile(DIRECTIVE.match, self.source.splitlines())
        options = [DIRECTIVE.match(line)[1] for line in lines]
        try:
            return yaml.safe_load(next(o for o in options if o.startswith("fig-alt:")))["fig-alt"]
        except (StopIteration, yaml.YAMLError):
            return None

    @property
    def tree(self) -> ast.Module:
        "The parsed code, or an empty module for magics and other things that are not Python."
        try:
            return ast.parse(self.source)
        except SyntaxError:
            return ast.Module([], [])


def joined(text) -> str:
    "Notebooks store text as one string or as a list of lines."
    return text if isinstance(text, str) else "".join(text or [])


def read(path: Path) -> list[Cell]:
    "The cells of a notebook."
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    return [
        Cell(
            n=n,
            kind=cell["cell_type"],
            source=joined(cell["source"]),
            outputs=cell.get("outputs", []),
            tags=tuple(cell.get("metadata", {}).get("tags", ())),
            attachments=tuple(cell.get("attachments", ())),
        )
        for n, cell in enumerate(raw["cells"])
    ]


def front_matter(cells: list[Cell]) -> dict:
    "The YAML block of a first raw cell, and the `key: value` items under a first title."
    for cell in cells[:2]:
        text = cell.source.strip()
        if cell.kind == "raw" and text.startswith("---"):
            return yaml.safe_load(text.strip("-\n")) or {}
        if cell.kind == "markdown" and text.startswith("# "):
            items = re.findall(r"^- *([\w-]+) *: *(.+)$", text, re.M)
            return {key: yaml.safe_load(value) for key, value in items}
    return {}


def notebooks(root: Path = NBS) -> list[Path]:
    "Every notebook, in order; checkpoints and hidden files left out."
    found = sorted(root.rglob("*.ipynb"))
    return [p for p in found if not any(o[0] in "._" for o in p.relative_to(root).parts)]


def short(path: Path) -> str:
    "A notebook's name in messages: its path without the leading `nbs/`."
    path = Path(path).resolve()
    return path.relative_to(NBS).as_posix() if path.is_relative_to(NBS) else path.name
