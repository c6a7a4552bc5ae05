"Two processes do what one does."

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from deepclust_nb.processes import alive
from deepclust_nb.runs import RunFolder
from learning import LEARNING

ALONE = [sys.executable]
TWO = [*ALONE, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def call(*command, cwd=ROOT) -> str:
    "Run a command on one thread a process; its output."
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "What each method came to, alone and with two processes."
    folder = tmp_path_factory.mktemp("processes")
    for name, how in {"alone": ALONE, "two": TWO}.items():
        call(*how, str(ROOT / "tests" / "two_processes.py"), str(folder / f"{name}.pt"), *LEARNING)
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", "two")]


@pytest.mark.parametrize("name", LEARNING)
def test_two_processes_train_as_one(name, trained):
    "Weights, state, gradients of the last step and the terms of the epoch, in float64."
    alone, two = (found[name] for found in trained)
    close = {"rtol": 1e-9, "atol": 1e-11}
    for part in ("state", "grads", "terms"):
        assert alone[part].keys() == two[part].keys()
    for part in ("state", "grads"):
        for key, value in alone[part].items():
            torch.testing.assert_close(two[part][key], value, msg=f"{name} {key}", **close)
    for key, value in alone["terms"].items():
        number = isinstance(value, float)
        assert two["terms"][key] == (pytest.approx(value, rel=1e-9) if number else value), key
    assert any(grad.abs().max() > 0 for grad in alone["grads"].values())


def test_a_run_of_two_processes_is_one_run(tmp_path):
    "One folder, written once, taken up again by a single process."
    args = ["-m", "deepclust_nb.cli", "train", "ncc", "--data", "digits", "--limit", "200"]
    args += ["--profile", "ci", "--epochs", "3", "--set", "width=4", "--out", "run"]
    said = call(*TWO, *args, "--stop-after", "2", cwd=tmp_path)
    assert said.count("run folder") == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == 2 and summary["joint_norms"] is False  # norms join on GPUs
    call(*ALONE, *args, "--resume", cwd=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epochs"] == 3 and summary["acc"] > 0.1


# One of two is lost

TRAIN = ["-m", "deepclust_nb.cli", "train", "ncc", "--data", "digits", "--limit", "60"]
TRAIN += ["--profile", "ci", "--epochs", "400", "--set", "width=4", "--set", "log_every=99"]
TRAIN += ["--quiet", "--device", "cpu", "--out", "run"]
PIPES = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}


def environment(**more) -> dict[str, str]:
    "One thread a process, this library."
    named = {name: str(value) for name, value in more.items()}
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | named


def wait_for_epochs(folder: Path, *processes: subprocess.Popen) -> None:
    "Until two epochs are done and all processes still run."
    end = time.monotonic() + 200
    while not (folder / "run" / "checkpoint.previous.pt").exists():
        assert time.monotonic() < end and all(p.poll() is None for p in processes)
        time.sleep(0.02)


def checked(said: str, folder: Path) -> list[str]:
    "The lines of our own; each names what is really kept, and the command that goes on."
    lines = [line for line in said.splitlines() if line.startswith("deepclust: ")]
    epoch = RunFolder(folder / "run").checkpoint()["epoch"]
    for line in lines:
        assert epoch >= 2 and f"epoch {epoch} is kept in run" in line, (epoch, said)
        assert re.search(r"go on with: deepclust train ncc .* --out run --resume$", line)
    assert lines and not list((folder / "run").rglob("*.part"))
    return lines


@pytest.fixture
def goes_on_alone(deepclust, no_figures):
    "A single process takes the run up."

    def check(folder: Path) -> None:
        epoch = RunFolder(folder / "run").checkpoint()["epoch"]
        more = ["--out", folder / "run", "--resume", "--stop-after", epoch + 1]
        done = deepclust(*TRAIN[2:-2], *more)
        assert done.code == 0, done.err
        assert RunFolder(folder / "run").checkpoint()["epoch"] == epoch + 1

    return check


@pytest.mark.parametrize("number", [0, 1])
def test_who_loses_the_other_says_so_and_ends(tmp_path, number, goes_on_alone):
    "Without torchrun, so that nobody else ends it: process `number` is killed."
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1]}
    envs = [environment(RANK=n, LOCAL_RANK=n, **place) for n in (0, 1)]
    both = [subprocess.Popen([*ALONE, *TRAIN], cwd=tmp_path, env=env, **PIPES) for env in envs]
    try:
        wait_for_epochs(tmp_path, *both)
        both[number].kill()
        said = both[1 - number].communicate(timeout=60)[1]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[1 - number].returncode == 2 and "Traceback" not in said
    (line,) = checked(said, tmp_path)
    assert f"process {1 - number} of 2: process {number} is gone" in line
    goes_on_alone(tmp_path)


def worker(number: int, parent: int) -> int:
    "The process that torchrun has started under this number."
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if ours and f"\0RANK={number}\0" in (entry / "environ").read_text():
                return int(entry.name)
        except OSError:  # it has just ended
            continue
    raise AssertionError(f"no process {number}")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM])
def test_under_torchrun_nobody_is_left_and_a_line_is_said(tmp_path, what, goes_on_alone):
    "SIGKILL to one of two, which makes torchrun end the other; SIGTERM to torchrun itself."
    with subprocess.Popen([*TWO, *TRAIN], cwd=tmp_path, env=environment(), **PIPES) as torchrun:
        try:
            wait_for_epochs(tmp_path, torchrun)
            workers = [worker(number, torchrun.pid) for number in (0, 1)]
            os.kill(workers[1] if what == signal.SIGKILL else torchrun.pid, what)
            said = torchrun.communicate(timeout=90)[1]
        finally:
            torchrun.kill()
    assert torchrun.returncode != 0 and not any(map(alive, workers))
    lines = checked(said, tmp_path)
    if what == signal.SIGKILL:
        assert "process 0 of 2: " in lines[0] and "process 1 is gone" in lines[0]
    goes_on_alone(tmp_path)


def test_a_lost_process_ends_the_others(tmp_path):
    "Nobody waits for ever; the last checkpoint stays."
    script = tmp_path / "lost.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "from deepclust_nb.processes import join, rank\n"
        "join('cpu', patience=5)\n"
        "os._exit(3) if rank() == 1 else dist.all_reduce(torch.ones(1))\n"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*TWO, str(script)], env=env, capture_output=True, timeout=120)
    assert done.returncode != 0
