"""Do notebooks and package agree, and are the notebooks clean?

    python tools/sync.py

Runs `nbdev_export` and `nbdev_clean` and compares every file of `nbs`, the package and `pyproject.toml` with what it
was before, whether or not git knows it. What changed is left as export and clean made it: that is the mend.
Also names modules whose notebook is gone, which export leaves behind.
"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from notebooks import NBS, PACKAGE, ROOT

IGNORED = {"__pycache__", ".ipynb_checkpoints"}


def snapshot() -> dict[str, str]:
    "A digest of every file that export and clean may touch."
    files = [p for top in (NBS, PACKAGE) for p in top.rglob("*") if p.is_file()]
    files = [p for p in [*files, ROOT / "pyproject.toml"] if not IGNORED & set(p.parts)]
    return {str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def orphans() -> list[str]:
    "Modules that say they come from a notebook that is not there."
    found = []
    for path in PACKAGE.rglob("*.py"):
        source = re.search(r"File to edit: (\S+?)\.\s*$", path.read_text(encoding="utf-8"), re.M)
        if source and not (path.parent / source[1]).resolve().exists():
            found.append(f"{path.relative_to(ROOT)}: its notebook {source[1]} is gone; delete it")
    return found


def command(name: str) -> list[str]:
    "A console script of the Python that runs this file."
    return [str(Path(sys.executable).parent / name)]


def main() -> int:
    before = snapshot()
    for name in ("nbdev_export", "nbdev_clean"):
        subprocess.run(command(name), cwd=ROOT, check=True)
    after = snapshot()
    changed = [p for p in sorted(before | after) if before.get(p) != after.get(p)]
    problems = [f"{p}: changed by export or clean" for p in changed] + orphans()
    print("\n".join(problems) or "notebooks and package agree")
    if changed:
        print(
            "Edit notebooks, not modules; the files above are now as they should be: look at them, and keep them."
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
