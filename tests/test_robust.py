"""What can happen to a machine while it trains: each time the last good checkpoint stays, and one line says what to do."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch

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


def same(a: dict, b: dict) -> bool:
    "Whether two checkpoints hold the same weights and buffers."
    return all(torch.equal(value, b["method"][name]) for name, value in a["method"].items())


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
    assert "is kept" in line
    assert state_in(tmp_path / "run")["epoch"] == 2
    assert train("--resume").code == 0  # there is room again
    assert same(state_in(tmp_path / "run"), state_in(tmp_path / "whole"))


def test_a_disk_that_is_full_while_the_log_is_written(train, tmp_path, monkeypatch):
    assert train(out="whole").code == 0
    log = runs.RunFolder.log

    def half(folder, line):
        if line["epoch"] < 3:
            return log(folder, line)
        with open(folder.metrics_file, "a") as file:
            file.write('{"epoch": 3, "sta')
        raise runs.write_error(folder.metrics_file, OSError(errno.ENOSPC, "no space"))

    with monkeypatch.context() as patched:
        patched.setattr(runs.RunFolder, "log", half)
        assert "metrics.jsonl" in line_of(train())
    assert state_in(tmp_path / "run")["epoch"] == 2
    assert train("--resume").code == 0
    one, other = ((tmp_path / out / "metrics.jsonl").read_text() for out in ("run", "whole"))
    assert one == other


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
        line_of(train())
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


# Numbers that are none


@pytest.mark.parametrize("method", ["mmdc", "byol", "lsdc"])
def test_nan_in_bf16_keeps_the_last_checkpoint(train, tmp_path, method):
    grows = ["--precision", "bf16", "--set", "lr=1e-3", "--set", "schedule=drops"]
    done = train(*grows, "--set", "drops=((0.5, 1e38),)", method=method)
    line = line_of(done)
    assert "not finite in epoch" in line and "lr" in line and "kept" in line
    state = state_in(tmp_path / "run")
    assert 1 <= state["epoch"] <= 3
    assert all(v.isfinite().all() for v in state["method"].values() if v.is_floating_point())
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and len(text.splitlines()) == state["epoch"]


def test_one_nan_in_a_bf16_product_stops_the_run(train, tmp_path, monkeypatch):
    terms = engine.terms_of

    def poisoned(run, what, idx, x, rows):
        out = terms(run, what, idx, x, rows)
        bad = run.epoch == 2 and run.optimiser.param_groups[0]["base_lr"]  # not in the estimate
        return out | {"loss": out["loss"] * float("nan")} if bad else out

    monkeypatch.setattr(engine, "terms_of", poisoned)
    line = line_of(train("--precision", "bf16"))
    assert "train.loss" in line and "epoch 3" in line
    assert state_in(tmp_path / "run")["epoch"] == 2


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
    assert all(word in line for word in ("--set bs=", "--set width=", "--size", "is kept"))
    assert ("accumulate=2" in line) == (method == "rotnet")
    assert state_in(tmp_path / "run")["epoch"] == 2
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
