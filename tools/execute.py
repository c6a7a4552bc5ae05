"""Execute notebooks in place and clean them, so that stored outputs are reviewable diffs.

    python tools/execute.py nbs/foundations/04_cluster.ipynb ...
    python tools/execute.py --slow ...       also run cells marked `#| slow`

Cells marked `#| slow`, `#| gpu`, `#| notest` or `#| eval: false` are not run and keep the output they have.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean

WIDGET = "application/vnd.jupyter.widget-view+json"
SKIPPED = {"slow", "gpu", "notest", "eval: false"}


def directives(source: str) -> set[str]:
    "The `#| ...` lines at the top of a cell."
    return {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}


class Runner(NotebookClient):
    "Runs every cell but those whose directives say otherwise."

    skipped = SKIPPED

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == "code" and directives(cell.source) & self.skipped:
            return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def still(nb: nbformat.NotebookNode) -> None:
    "Leave of each widget the picture that it brings for those who have no kernel."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)


def execute(path: Path, slow: bool) -> bool:
    "Run one notebook in its own folder; on failure print the traceback and leave the file alone."
    nb = nbformat.read(path, as_version=4)
    settings = {"timeout": 900, "kernel_name": "python3", "store_widget_state": False}
    runner = Runner(nb, resources={"metadata": {"path": str(path.parent)}}, **settings)
    runner.skipped = SKIPPED - ({"slow"} if slow else set())
    try:
        runner.execute()
    except CellExecutionError as error:
        print(f"{path}: failed\n{error}", file=sys.stderr)
        return False
    still(nb)
    nbformat.write(nb, path)
    nbdev_clean(str(path))
    print(f"{path}: ok")
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--slow", action="store_true", help="also run cells marked `#| slow`")
    args = parser.parse_args()
    sys.exit(0 if all([execute(path, args.slow) for path in args.notebooks]) else 1)
