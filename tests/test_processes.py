"Two processes do what one does."

import json
import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
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
