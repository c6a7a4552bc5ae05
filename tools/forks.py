"""Running Python functions in forked processes, a few at a time, each with a time limit.

A fork inherits what its parent has imported and computed, so it starts in milliseconds; and whatever it does,
its parent and its siblings do not notice.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator


@dataclass
class Outcome:
    "What became of one forked call."

    job: Any
    ok: bool  # The function returned something true
    timed_out: bool
    seconds: float
    text: str  # What it printed, and the traceback if it raised


@dataclass
class Child:
    job: Any
    pid: int
    log: Any
    started: float


def start(function: Callable, job) -> Child:
    "Fork; the child calls `function(job)` with its output going to a file, and exits 0 if that is true."
    log = tempfile.TemporaryFile("w+")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(job, pid, log, time.monotonic())
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout = sys.stderr = open(1, "w", closefd=False)
        code = 0 if function(job) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: Child, status: int, timed_out: bool) -> Outcome:
    "Collect what a child that has ended has printed."
    child.log.seek(0)
    text = child.log.read()
    child.log.close()
    if os.WIFSIGNALED(status) and not timed_out:
        text += f"\nended by signal {os.WTERMSIG(status)}\n"
    ok = not timed_out and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    return Outcome(child.job, ok, timed_out, time.monotonic() - child.started, text)


def ended(child: Child, limit: float) -> Outcome | None:
    "The outcome of a child if it has ended or its time is up."
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid:
        return finish(child, status, False)
    if time.monotonic() - child.started < limit:
        return None
    os.kill(child.pid, signal.SIGKILL)
    return finish(child, os.waitpid(child.pid, 0)[1], True)


def run(function: Callable, jobs: Iterable, workers: int, limit: float) -> Iterator[Outcome]:
    "Call `function(job)` in a fork for each job, `workers` at a time; outcomes as they come."
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(start(function, waiting.pop(0)))
        for child in list(running):
            outcome = ended(child, limit)
            if outcome:
                running.remove(child)
                yield outcome
        time.sleep(0.005)
