"""Everything the CI checks; `make test` runs this.

    python tools/check.py                    all steps
    python tools/check.py --only lessons     one step (or several: --only lint,imports)
    python tools/check.py --list             their names

Each step is a process of its own. The last line is `N passed, N failed`: pytest's tests, lessons and training notebooks are counted one by
one, any other step as one. Full logs are in `runs/check/`.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from notebooks import ROOT

LOGS = ROOT / "runs" / "check"
PYTHON = sys.executable
CORES = max(2, min(os.cpu_count() or 2, 8))
LIMIT = 2400  # Seconds a step may take
TOO_LONG = 124  # The exit code of one that took longer
TAIL = 60  # Lines of a failed step's output that are shown
PROGRESS = re.compile(r"[.sxXFE]+ *\[ *\d+%\]$")  # A line of pytest's dots, which says nothing
QUIET = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Step:
    "One named check."

    name: str
    says: str  # What it checks
    command: str  # Joined by && where there are several
    wide: bool = False  # Uses all cores, so it runs alone; others run side by side
    first: bool = False  # Writes files that the others read


STEPS = [
    Step("sync", "export and clean change nothing", "{py} tools/sync.py", first=True),
    Step(
        "training", "the training notebooks run and learn at profile ci", "{py} tools/training.py"
    ),
    Step(
        "lint",
        "ruff: errors, order of imports, format",
        "{py} -m ruff check . && {py} -m ruff format --check nbs tools tests setup.py",
    ),
    Step("imports", "imports point one way", "{py} tools/imports.py"),
    Step("sizes", "small functions and cells, documentation, outputs", "{py} tools/sizes.py"),
    Step("docs", "the site's parts, links, README", "{py} tools/docs.py"),
    Step("lessons", "every lesson runs", "{py} tools/lessons.py --workers {n}", wide=True),
    Step(
        "pytest",
        "plain tests",
        "{py} -m pytest -n {n} --dist loadfile --junitxml {junit}",
        wide=True,
    ),
    Step("mutate", "the lessons notice mistakes", "{py} tools/mutate.py --workers {n}", wide=True),
]


@dataclass
class Result:
    "How a step ended."

    step: Step
    passed: int
    failed: int
    skipped: int
    seconds: float
    output: str


def count(step: Step, code: int, output: str) -> tuple[int, int, int]:
    "Passed, failed and skipped: pytest's own count, or the last `N passed, N failed` line, or one."
    passed, failed, skipped = int(code == 0), 0, 0
    lines = re.findall(r"^(\d+) passed, (\d+) failed$", output, re.M)
    junit = LOGS / "pytest.xml"
    if step.name == "pytest" and junit.exists():
        suites = ET.parse(junit).getroot().iter("testsuite")
        sums = [
            [int(s.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")] for s in suites
        ]
        tests, failures, errors, skipped = map(sum, zip(*sums))
        failed, passed = failures + errors, tests - failures - errors - skipped
    elif lines:
        passed, failed = map(int, lines[-1])
    return passed, max(failed, int(code != 0)), skipped


def reasons(step: Step) -> list[str]:
    "Each failed test of pytest with the first line of what it said."
    junit = LOGS / "pytest.xml"
    if step.name != "pytest" or not junit.exists():
        return []
    return [
        f"{case.get('classname')}::{case.get('name')}: {bad.get('message', '').partition(chr(10))[0]}"
        for case in ET.parse(junit).getroot().iter("testcase")
        for bad in (*case.findall("failure"), *case.findall("error"))
    ]


def measured() -> list[str]:
    "What tests have measured and written down; no test fails by the clock."
    junit = LOGS / "pytest.xml"
    if not junit.exists():
        return []
    properties = ET.parse(junit).getroot().iter("property")
    return [one.get("value", "") for one in properties if one.get("name") == "measured"]


def wait_for(process: subprocess.Popen) -> int:
    "The exit code of a step; one that takes too long is ended with all it has started."
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return TOO_LONG


def run(step: Step) -> Result:
    "Run one step to its end."
    junit = LOGS / "pytest.xml"
    command = step.command.format(py=f'"{PYTHON}"', n=CORES, junit=f'"{junit}"')
    env = (
        os.environ
        | QUIET
        | {"PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    )
    options = {
        "shell": True,
        "cwd": ROOT,
        "env": env,
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
    }
    start = time.monotonic()
    log = LOGS / f"{step.name}.log"
    with log.open("w", encoding="utf-8") as file:
        file.write(command + "\n\n")
        file.flush()
        code = wait_for(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options))
        if code == TOO_LONG:
            file.write(f"\nstopped after {LIMIT} s\n")
    output = log.read_text(encoding="utf-8", errors="replace")
    return Result(step, *count(step, code, output), time.monotonic() - start, output)


def report(result: Result) -> None:
    "One line a step; of a failed one what failed, then the end of its output."
    word = "FAILED" if result.failed else "ok"
    print(f"{word:7} {result.step.name:9} {result.seconds:7.1f} s   {result.step.says}", flush=True)
    if result.failed:
        lines = [line for line in result.output.splitlines() if not PROGRESS.match(line)]
        shown = reasons(result.step) + lines[-TAIL:]
        print("\n".join("    | " + line for line in shown), flush=True)


def side_by_side(steps: list[Step]) -> list[Result]:
    "Run steps that use one core each, as many at a time as there are cores."
    results = []
    with ThreadPoolExecutor(CORES) as pool:
        waiting = {pool.submit(run, step) for step in steps}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                results.append(future.result())
                report(results[-1])
    return results


def run_all(steps: list[Step]) -> list[Result]:
    "Those that write first, then those side by side, then those that use every core."
    results = []
    groups = [[step] for step in steps if step.first]
    groups.append([step for step in steps if not step.first and not step.wide])
    groups += [[step] for step in steps if step.wide]
    for group in groups:
        results += side_by_side(group)
    return results


def table(results: list[Result]) -> str:
    "The result of every step."
    rows = [f"{'step':9} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}"]
    for r in results:
        rows.append(f"{r.step.name:9} {r.passed:6} {r.failed:6} {r.skipped:7} {r.seconds:8.1f}")
    return "\n".join(rows)


def choose(only: str) -> list[Step]:
    "The steps asked for."
    wanted = [name for name in only.split(",") if name]
    unknown = set(wanted) - {step.name for step in STEPS}
    if unknown:
        sys.exit(
            f"no step {', '.join(sorted(unknown))}; there are: {', '.join(s.name for s in STEPS)}"
        )
    return [step for step in STEPS if not wanted or step.name in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    parser.add_argument("--list", action="store_true", help="show the steps and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{step.name:9} {step.says}" for step in STEPS))
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / "pytest.xml").unlink(missing_ok=True)
    results = run_all(choose(args.only))
    failed = sum(r.failed for r in results)
    last = f"{sum(r.passed for r in results)} passed, {failed} failed"
    (LOGS / "summary.txt").write_text(last + "\n", encoding="utf-8")
    print("\n".join(["", table(results), "", *measured(), last]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
