"""What can happen to a machine while it trains: each time the last good checkpoint stays, and one line says what to do."""

import errno
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from conftest import COMMAND
from deepclust_nb import engine, runs


@pytest.fixture
def train(deepclust, tiny, tmp_path, no_figures):
    "Train 60 digits for four epochs into `run`."

    def call(*more, method="mmdc", out="run"):
        options = ["--data", "digits", "--limit", 60, "--epochs", 4, "--out", tmp_path / out]
        return deepclust("train", method, *options, *tiny, *more)

    return call


def line_of(done) -> str:
    "The one line that a refused command ends in."
    assert done.code == 2 and not done.crash, done.crash or done.err
    last = done.last.strip()
    assert last.startswith("deepclust: ") and "\n" not in last, last
    return last


def state_in(folder: Path) -> dict:
    "The checkpoint, as the library reads it; no part of another lies beside it."
    assert not list(folder.rglob("*.part"))
    return runs.RunFolder(folder).checkpoint()


def same(a: Path, b: Path) -> bool:
    "Whether two runs have come to the same weights, buffers, log and assignments, to the bit."
    one, other = (state_in(folder)["method"] for folder in (a, b))
    files = ((a / name, b / name) for name in ("metrics.jsonl", "assignments.csv"))
    equal = all(one.read_bytes() == other.read_bytes() for one, other in files)
    return equal and all(torch.equal(value, other[name]) for name, value in one.items())


def keeps(line: str, epoch: int, folder: Path) -> bool:
    "Whether a line names the epoch that the checkpoint really is of, and the folder."
    return state_in(folder)["epoch"] == epoch and f"epoch {epoch} is kept in {folder}" in line


# A killed run


@pytest.fixture
def started(tmp_path, tiny):
    "A process of its own that trains for a long time, past its first epoch; killed at the end."
    options = ["--data", "digits", "--limit", "300", "--epochs", "200", "--out", tmp_path / "run"]
    command = [str(word) for word in (COMMAND, "train", "mmdc", *options, *tiny)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint.previous.pt").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        yield process
        process.kill()


def go_on(deepclust, folder: Path, tiny) -> None:
    "Two epochs more, from where the run was left."
    epoch = state_in(folder)["epoch"]
    options = ["--data", "digits", "--limit", 300, "--epochs", 200, "--out", folder, *tiny]
    done = deepclust("train", "mmdc", *options, "--resume", "--stop-after", epoch + 2)
    assert done.code == 0, done.err
    assert state_in(folder)["epoch"] == epoch + 2


def test_a_killed_run_says_on_the_next_call_what_is_kept(
    deepclust, started, tiny, tmp_path, no_figures
):
    started.kill()
    started.wait()
    options = ["--data", "digits", "--limit", 300, "--epochs", 200, "--out", tmp_path / "run"]
    line = line_of(deepclust("train", "mmdc", *options, *tiny))
    epoch = runs.RunFolder(tmp_path / "run").checkpoint()["epoch"]
    assert f"holds a run already (epoch {epoch} is kept)" in line and "--resume" in line
    go_on(deepclust, tmp_path / "run", tiny)


def test_a_run_that_is_asked_to_end_says_what_is_kept(
    deepclust, started, tiny, tmp_path, no_figures
):
    "SIGTERM, as torchrun, schedulers and shutdowns send it."
    started.send_signal(signal.SIGTERM)
    last = started.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert started.returncode == 2
    assert last.startswith("deepclust: asked to end (SIGTERM)")
    assert last.endswith(" --resume") and "go on with: deepclust train mmdc" in last
    assert keeps(last, state_in(tmp_path / "run")["epoch"], tmp_path / "run")
    go_on(deepclust, tmp_path / "run", tiny)


# A full disk


class FullDisk:
    "os.fsync and files on a disk that is full from the checkpoint of an epoch on."

    def __init__(self, monkeypatch, at: int, where: str):
        self.true, self.full = getattr(os, where), False
        save = runs.RunFolder.save_checkpoint

        def watched(folder, state):
            self.full = self.full or state["epoch"] >= at
            save(folder, state)

        monkeypatch.setattr(runs.RunFolder, "save_checkpoint", watched)
        monkeypatch.setattr(os, where, self.call)

    def call(self, *args):
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.true(*args)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_keeps_the_last_checkpoint(train, tmp_path, monkeypatch, where):
    assert train(out="whole").code == 0
    with monkeypatch.context() as patched:
        FullDisk(patched, 3, where)
        line = line_of(train())
    assert "checkpoint.pt" in line and "disk is full" in line and "--resume" in line
    assert keeps(line, 2, tmp_path / "run")
    assert train("--resume").code == 0  # there is room again
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_disk_that_is_full_while_the_log_is_written(train, tmp_path, monkeypatch):
    assert train(out="whole").code == 0
    log = runs.RunFolder.log

    def half(folder, line):
        if line["epoch"] < 3:
            return log(folder, line)
        with open(folder.metrics_file, "a") as file:
            file.write('{"epoch": 3, "sta')
        error = OSError(errno.ENOSPC, "no space")
        raise runs.write_error(folder.metrics_file, error) from error

    with monkeypatch.context() as patched:
        patched.setattr(runs.RunFolder, "log", half)
        line = line_of(train())
    assert "metrics.jsonl" in line and keeps(line, 2, tmp_path / "run")
    assert train("--resume").code == 0
    assert same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a thing of Linux")
def test_a_log_on_a_disk_that_is_really_full(tmp_path):
    folder = runs.RunFolder(tmp_path)
    folder.metrics_file = Path("/dev/full")
    with pytest.raises(runs.DeepClustError, match="disk is full"):
        folder.log({"epoch": 1})


def test_no_room_for_what_comes_after_training(train, tmp_path, monkeypatch):
    "The run is finished; only its summary is missing, and --resume writes it."
    with monkeypatch.context() as patched:
        disk = FullDisk(patched, 99, "fsync")
        patched.setattr("deepclust_nb.train.summary_of", lambda *rest: setattr(disk, "full", True))
        assert keeps(line_of(train()), 4, tmp_path / "run")
    assert state_in(tmp_path / "run")["finished"]
    assert not (tmp_path / "run" / "summary.json").exists()
    assert train("--resume").code == 0
    assert (tmp_path / "run" / "summary.json").exists()


# A damaged checkpoint


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_a_wrong_bit_in_the_checkpoint_is_noticed(train, tmp_path, listing, share):
    assert train("--stop-after", 1).code == 0
    file = tmp_path / "run" / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 4
    file.write_bytes(content)
    before = listing(tmp_path)
    line = line_of(train("--resume"))
    assert "checkpoint.pt" in line and "nothing was loaded or changed" in line
    after = listing(tmp_path)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"run/config.json"}


def worn(file: Path) -> None:
    "One wrong bit in the middle."
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.unlink()  # the other name, if there is one, keeps its bytes
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["damaged", "missing", "empty"])
def test_a_run_goes_on_from_the_checkpoint_before_a_corrupt_one(train, tmp_path, how):
    "It says so, and ends where it would have ended; the damaged file is set aside."
    assert train(out="whole").code == 0
    assert train("--stop-after", 3).code == 0
    file = tmp_path / "run" / "checkpoint.pt"
    if how == "damaged":
        worn(file)
    else:
        file.unlink()
    if how == "empty":
        file.touch()
    done = train("--resume", "--stop-after", 3)
    assert done.code == 0, done.err
    said = next(line for line in done.out.splitlines() if str(file) in line)
    assert "going on from the one before, of epoch 2" in said
    assert ("missing" if how == "missing" else "checkpoint.damaged.pt") in said
    assert (tmp_path / "run" / "checkpoint.damaged.pt").exists() == (how != "missing")
    assert state_in(tmp_path / "run")["epoch"] == 3
    assert train("--resume").code == 0
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_corrupt_checkpoint_is_named_where_nothing_goes_on(train, deepclust, tmp_path):
    "A prediction does not choose another state by itself; it says what there is."
    assert train("--stop-after", 3).code == 0
    worn(tmp_path / "run" / "checkpoint.pt")
    line = line_of(deepclust("evaluate", tmp_path / "run"))
    assert "checkpoint.pt: damaged" in line and "nothing was loaded or changed" in line
    assert "checkpoint.previous.pt, of epoch 2, is whole" in line and "--resume" in line
    assert "(epoch 2 is kept)" in line_of(train())
    worn(tmp_path / "run" / "checkpoint.previous.pt")
    assert "previous" not in line_of(train("--resume"))
    assert "(no finished epoch is kept)" in line_of(train())
    assert train("--overwrite", "--stop-after", 1).code == 0
    left = sorted(p.name for p in (tmp_path / "run").glob("checkpoint*"))
    assert left == ["checkpoint.pt"]


def test_the_checkpoint_before_is_that_of_the_epoch_before(train, tmp_path):
    assert train().code == 0
    epochs = [
        torch.load(tmp_path / "run" / f"checkpoint{name}.pt", weights_only=True)["epoch"]
        for name in ("", ".previous")
    ]
    assert epochs == [4, 3]


# Numbers that are none


@pytest.mark.parametrize("method", ["mmdc", "byol", "lsdc"])
def test_nan_in_bf16_keeps_the_last_checkpoint(train, tmp_path, method):
    grows = ["--precision", "bf16", "--set", "lr=1e-3", "--set", "schedule=drops"]
    done = train(*grows, "--set", "drops=((0.5, 1e38),)", method=method)
    line = line_of(done)
    assert "not finite in epoch" in line and "lr" in line and "--precision float32" in line
    state = state_in(tmp_path / "run")
    assert 1 <= state["epoch"] <= 3 and keeps(line, state["epoch"], tmp_path / "run")
    assert all(v.isfinite().all() for v in state["method"].values() if v.is_floating_point())
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and len(text.splitlines()) == state["epoch"]


def test_one_nan_in_a_bf16_product_stops_the_run(train, tmp_path, monkeypatch):
    terms = engine.terms_of

    def poisoned(run, what, idx, x, rows):
        out = terms(run, what, idx, x, rows)
        bad = run.epoch == 2 and run.optimiser.param_groups[0]["base_lr"]  # not in the estimate
        return out | {"loss": out["loss"] * float("nan")} if bad else out

    with monkeypatch.context() as patched:
        patched.setattr(engine, "terms_of", poisoned)
        line = line_of(train("--precision", "bf16"))
    assert "train.loss" in line and "epoch 3" in line and keeps(line, 2, tmp_path / "run")
    assert line.endswith("--resume --precision float32, or begin anew")
    done = train("--resume", "--precision", "float32")  # as it says
    assert done.code == 0, done.err
    assert state_in(tmp_path / "run")["finished"]


# No memory left


ERRORS = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: torch.empty(2**60),
    "python": lambda: bytearray(2**62),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("method", ["mmdc", "rotnet"])
def test_out_of_memory_names_the_settings(train, tmp_path, monkeypatch, kind, method):
    terms = engine.terms_of

    def greedy(run, what, idx, x, rows):
        if run.epoch == 2 and run.optimiser.param_groups[0]["base_lr"]:  # not in the estimate
            error = ERRORS[kind]()
            raise error
        return terms(run, what, idx, x, rows)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "terms_of", greedy)
        line = line_of(train(method=method))
    assert re.search(r"out of memory with bs=\d+ and small_cnn of width=4", line)
    assert all(word in line for word in ("--set bs=", "--set width=", "--size"))
    assert ("accumulate=2" in line) == (method == "rotnet")
    assert keeps(line, 2, tmp_path / "run")
    more = ["--set", "accumulate=2"] if method == "rotnet" else []
    assert train("--resume", *more, method=method).code == 0
    assert state_in(tmp_path / "run")["finished"]


def test_out_of_memory_before_the_first_epoch(train, tmp_path, monkeypatch):
    def greedy(*rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "terms_of", greedy)
    assert "out of memory" in line_of(train())
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_out_of_memory_elsewhere(deepclust, photo_run, photos, monkeypatch):
    def greedy(*rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("deepclust_nb.train.assignments", greedy)
    assert "out of memory" in line_of(deepclust("predict", photo_run, photos))


# Another error is not dressed up


def test_a_mistake_of_ours_is_not_hidden(train, monkeypatch):
    def broken(*rest):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(engine, "terms_of", broken)
    done = train()
    assert done.code == 1 and "RuntimeError: shapes differ" in done.crash


def test_the_configuration_of_a_cut_off_run_is_valid(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        FullDisk(patched, 1, "fsync")
        line_of(train())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == "mmdc" and not (tmp_path / "run" / "checkpoint.pt").exists()
    assert train("--resume").code == 0
