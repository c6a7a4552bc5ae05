"""Run every lesson, as `nbdev_test` does, and say for each whether it passed and how long it took.

    python tools/lessons.py [NOTEBOOK ...] [--workers 2] [--flags 'slow gpu']

Each notebook runs in its own forked process, so nothing leaks from one to the next. Notebooks with `skip_exec: true` in their
front matter (training notebooks) are left to papermill.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import forks
from notebooks import NBS, ROOT, front_matter, notebooks, read, short

LIMIT = 900  # Seconds a notebook may take


def passed(job: tuple[Path, list[str]]) -> bool:
    "In a fork: run one notebook."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    path, flags = job
    skip = get_config().tst_flags.split()
    return test_nb(path, skip_flags=skip, force_flags=flags, basepath=ROOT)[0]


def preload() -> None:
    "What nearly every lesson imports; the forks inherit it."
    import matplotlib.pyplot  # noqa: F401
    import nbdev.test  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import torch  # noqa: F401


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--flags", default="", help="also run cells marked so, for example 'slow'")
    args = parser.parse_args()
    os.chdir(ROOT)
    paths = [p.resolve() for p in args.notebooks] or notebooks(NBS)
    chosen = [p for p in paths if not front_matter(read(p)).get("skip_exec", False)]
    preload()
    failed = 0
    jobs = [(path, args.flags.split()) for path in chosen]
    for outcome in forks.run(passed, jobs, args.workers, LIMIT):
        word = "ok" if outcome.ok else "TOO LONG" if outcome.timed_out else "FAILED"
        print(f"{word:8} {short(outcome.job[0]):36} {outcome.seconds:6.1f} s", flush=True)
        if not outcome.ok:
            failed += 1
            print(outcome.text, flush=True)
    print(f"{len(jobs) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
