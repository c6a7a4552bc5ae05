"""Run the training notebooks, and the studies with `skip_exec: true`, through papermill.

    python tools/training.py [NOTEBOOK ...] [--profile ci]

The executed copies, with their outputs, are left in `runs/training/`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from notebooks import NBS, ROOT, front_matter, notebooks, read, short

LIMIT = 900  # Seconds a cell may take at profile `ci`


def command(path: Path, profile: str) -> list[str]:
    "The papermill call for one notebook."
    out = ROOT / "runs" / "training" / path.name
    options = (
        f"-k python3 --cwd {path.parent} --no-progress-bar --log-output --execution-timeout {LIMIT}"
    )
    call = [sys.executable, "-m", "papermill", str(path), str(out), "-p", "profile", profile]
    return call + options.split()


def all_of_them() -> list[Path]:
    "The training notebooks, and the studies that lessons.py leaves to papermill."
    studies = [p for p in notebooks(NBS / "studies") if front_matter(read(p)).get("skip_exec")]
    return notebooks(NBS / "training") + studies


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--profile", default="ci", help="ci, laptop, gpu or full")
    args = parser.parse_args()
    env = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | os.environ
    (ROOT / "runs" / "training").mkdir(parents=True, exist_ok=True)
    paths = [p.resolve() for p in args.notebooks] or all_of_them()
    failed = 0
    for path in paths:
        start = time.monotonic()
        code = subprocess.run(command(path, args.profile), cwd=ROOT, env=env).returncode
        failed += code != 0
        word = "ok" if code == 0 else "FAILED"
        print(f"{word:8} {short(path):36} {time.monotonic() - start:6.1f} s", flush=True)
    print(f"{len(paths) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
