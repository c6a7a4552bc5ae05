"""Would the lessons notice a mistake? Make one small mistake at a time and run the lesson.

    python tools/mutate.py                                   the default notebooks
    python tools/mutate.py nbs/methods/10_mmdc.ipynb --only 'reassign|cloud'
    python tools/mutate.py --list                            show the mistakes, run nothing

Each exported function and class is changed at one place (see `mutants.py`), and the cells from there to the end of
the notebook are run. A mistake is *killed* when a cell raises or runs far too long, and *survives* when
every cell passes: then the lesson lacks a test, or the change makes no difference. Changes that make no
difference are listed, each with its reason, in `tools/mutants_equivalent.json`, under the key printed beside a
survivor, and are not counted. The exit code is 0 when at least 95 % of the rest are killed.

Not run: cells marked `#| slow`, `#| gpu`, `#| notest`, `#| eval: false`, and cells that carry the tag `training` (too slow to
repeat hundreds of times; what uses their results must carry it too).
"""

import argparse
import ast
import difflib
import importlib
import json
import linecache
import os
import re
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", MPLBACKEND="agg", IN_TEST="1")
os.environ["CUDA_VISIBLE_DEVICES"] = (
    ""  # Mistakes are found on the CPU, and forks cannot share a GPU
)

import forks
from mutants import Edit, mutants
from notebooks import ROOT, Cell, read, short

DEFAULT = ["nbs/foundations/04_cluster.ipynb", "nbs/methods/*.ipynb"]
EQUIVALENT = ROOT / "tools" / "mutants_equivalent.json"
WANTED = 95.0  # Per cent killed
FOREVER = 1e9


@dataclass
class Mutant:
    "One mistake in one cell."

    notebook: str
    cell: Cell
    edit: Edit
    key: str  # Readable name, which does not depend on line numbers

    @property
    def source(self) -> str:
        return self.edit.apply(self.cell.source)

    @property
    def diff(self) -> list[str]:
        "The lines that differ, `-` before and `+` after."
        lines = difflib.unified_diff(
            self.cell.source.splitlines(), self.source.splitlines(), n=0, lineterm=""
        )
        return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def find(path: Path, cells: list[Cell], only: str) -> list[Mutant]:
    "The mistakes of a notebook, in the order of its cells."
    found, counts = [], Counter()
    for cell in cells:
        if not (cell.kind == "code" and cell.exported):
            continue
        for edit in mutants(cell.source):
            mutant = Mutant(short(path), cell, edit, "")
            change = " => ".join(" ".join(line[1:].split()) for line in mutant.diff)
            key = f"{mutant.notebook} | {edit.function} | {change}"
            counts[key] += 1
            mutant.key = key if counts[key] == 1 else f"{key} | {counts[key]}"
            if re.search(only, edit.function):
                found.append(mutant)
    return found


# Running cells


def runnable(cell: Cell) -> bool:
    return cell.kind == "code" and not cell.skipped and "training" not in cell.tags


def without_magics(source: str) -> str:
    "Blank out what only IPython understands."
    if source.lstrip().startswith("%%"):
        return ""
    return "\n".join("" if re.match(r"\s*[%!]", line) else line for line in source.split("\n"))


def execute(cell: Cell, source: str, names: dict) -> None:
    "Run one cell the way a notebook does, in the namespace `names`."
    source, name = without_magics(source), f"<cell {cell.n}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), names)


def new_main(folder: Path) -> dict:
    "An empty `__main__`, where pictures are drawn for nobody."
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.path[:0] = [str(folder), str(ROOT)]
    os.chdir(folder)
    main.display = lambda *things, **options: None
    plt = sys.modules.get("matplotlib.pyplot")
    if plt:
        plt.show = lambda *args, **options: plt.close("all")
    return main.__dict__


def preload(cells: list[Cell]) -> None:
    "Import what the notebook imports, but the package itself, so that forks need not."
    for cell in cells:
        for node in ast.walk(cell.tree if cell.kind == "code" else ast.Module([], [])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                if not name.startswith(("deepclust_nb", "umap", "nbdev")):
                    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def run_rest(cells: list[Cell], mutant: Mutant, names: dict) -> bool:
    "In a fork: the wrong cell, then those after it."
    execute(mutant.cell, mutant.source, names)
    for cell in cells[mutant.cell.n + 1 :]:
        if runnable(cell):
            execute(cell, cell.source, names)
    return True


def run_clean(job: tuple[Path, list[Cell]]) -> bool:
    "In a fork: the notebook as it is."
    path, cells = job
    names = new_main(path.parent)
    for cell in filter(runnable, cells):
        execute(cell, cell.source, names)
    return True


def serve(job: tuple) -> bool:
    "In a fork: run the cells in order, and at each exported one let forks run its mistakes."
    path, cells, found, workers, limit, answers = job
    names = new_main(path.parent)
    with open(answers, "w", encoding="utf-8") as out:
        for cell in filter(runnable, cells):
            jobs = [n for n, mutant in enumerate(found) if mutant.cell.n == cell.n]
            for outcome in forks.run(
                lambda n: run_rest(cells, found[n], names), jobs, workers, limit
            ):
                last = outcome.text.strip().splitlines()[-1:]
                how = "time" if outcome.timed_out else "".join(last)[:200]
                print(json.dumps([outcome.job, not outcome.ok, how]), file=out, flush=True)
            execute(cell, cell.source, names)
    return True


def only_outcome(function, job) -> forks.Outcome:
    return next(forks.run(function, [job], 1, FOREVER))


def run_notebook(path: Path, cells: list[Cell], found: list[Mutant], workers: int) -> dict | str:
    "For each mistake that was run: (was it killed, by what). A text when the notebook itself fails."
    clean = only_outcome(run_clean, (path, cells))
    if not clean.ok:
        return f"{short(path)} does not pass as it is:\n{clean.text}"
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers"
        limit = 3 * clean.seconds + 10
        outcome = only_outcome(serve, (path, cells, found, workers, limit, answers))
        if not outcome.ok:
            return f"{short(path)}: could not run:\n{outcome.text}"
        lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
        return {found[n].key: (killed, how) for n, killed, how in lines}


# Reporting


def show(mutant: Mutant, word: str, reason: str = "") -> None:
    edit = mutant.edit
    print(f"\n{word}: {mutant.notebook} cell {mutant.cell.n} line {edit.line}, {edit.function}")
    print("\n".join("    " + line for line in mutant.diff))
    print(
        f"    key: {json.dumps(mutant.key, ensure_ascii=False)}"
        + (f"\n    {reason}" if reason else "")
    )


def paths(given: list[str]) -> list[Path]:
    "The notebooks to work on."
    if given:
        return [Path(name).resolve() for name in given]
    return [path for pattern in DEFAULT for path in sorted(ROOT.glob(pattern))]


def summary(killed: int, total: int, equivalent: int) -> str:
    share = 100 * killed / total if total else 100.0
    return f"killed {killed} / total {total} ({share:.1f} %), {equivalent} equivalent"


def work(path: Path, known: dict, args) -> tuple[int, int, int, bool]:
    "Killed, total and equivalent mistakes of one notebook, and whether it could be run."
    cells = read(path)
    found = find(path, cells, args.only)
    chosen = found if args.all else [m for m in found if m.key not in known]
    equivalent = sum(m.key in known for m in found)
    if not chosen:
        return 0, 0, equivalent, True
    started = time.monotonic()
    answers = run_notebook(path, cells, chosen, args.workers)
    if isinstance(answers, str):
        print(answers)
        return 0, len(found) - equivalent, equivalent, False
    for mutant in chosen:
        killed, how = answers[mutant.key]
        if killed and (mutant.key in known or args.verbose):
            note = " (listed as equivalent: remove it there)" if mutant.key in known else ""
            show(mutant, "killed" + note, how)
        elif not killed and mutant.key not in known:
            show(mutant, "SURVIVED")
    counted = [m for m in chosen if m.key not in known]
    killed = sum(answers[m.key][0] for m in counted)
    slow = sum(answers[m.key][1] == "time" for m in counted)
    seconds = time.monotonic() - started
    print(
        f"\n{short(path)}: {summary(killed, len(counted), equivalent)}, {slow} of them ran too long, {seconds:.0f} s",
        flush=True,
    )
    return killed, len(counted), equivalent, True


def stale(known: dict, notebooks: list[Path]) -> list[str]:
    "Listed keys that no mistake has any more."
    names = {short(path) for path in notebooks}
    alive = {m.key for path in notebooks for m in find(path, read(path), "")}
    return [key for key in known if key.split(" | ")[0] in names and key not in alive]


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="default: " + ", ".join(DEFAULT))
    parser.add_argument("--list", action="store_true", help="show the mistakes, run nothing")
    parser.add_argument("--only", default="", help="functions whose name matches this expression")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--all", action="store_true", help="also run those listed as equivalent")
    parser.add_argument("--verbose", action="store_true", help="also show what killed each one")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> int:
    args = parse()
    warnings.simplefilter("ignore")
    notebooks = paths(args.notebooks)
    known = (
        json.loads(args.equivalent.read_text(encoding="utf-8")) if args.equivalent.exists() else {}
    )
    if args.list:
        for mutant in (m for path in notebooks for m in find(path, read(path), args.only)):
            show(mutant, "mistake", known.get(mutant.key, ""))
        return 0
    for path in notebooks:
        preload(read(path))
    results = [work(path, known, args) for path in notebooks]
    old = stale(known, notebooks)
    for key in old:
        print(f"no longer in the code, remove it from {args.equivalent.name}: {key}")
    killed, total, equivalent = (
        (sum(column) for column in list(zip(*results))[:3]) if results else (0, 0, 0)
    )
    print(summary(killed, total, equivalent))
    good = all(result[3] for result in results) and not old
    return 0 if good and killed >= WANTED / 100 * total else 1


if __name__ == "__main__":
    sys.exit(main())
