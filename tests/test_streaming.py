"""Images that stay in host memory or in their files: the same batches, the same weights, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import DEVICE, ROOT
from deepclust_nb import engine
from deepclust_nb.data import ImageSet, epoch_order, load_data
from deepclust_nb.engine import fit
from deepclust_nb.runs import RunFolder
from deepclust_nb.stream import Files
from deepclust_nb.train import METHODS, make_plan
from test_processes import TWO, call
from test_robust import line_of

STREAMED = {"memory": ["--stream", "memory"], "files": ["--stream", "files", "--workers", 2]}


@pytest.fixture(scope="module", params=["grey", "colour"])
def album(request, tmp_path_factory, digits):
    "A folder of 23 pictures in two classes, one of them in no state to be read; of 'colour' every third is grey."
    folder = tmp_path_factory.mktemp(request.param)
    for i in range(23):
        place = folder / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        im = Image.fromarray(digits[i]).resize((12, 15))
        im = im.convert("RGB") if request.param == "colour" and i % 3 else im
        im.save(place / f"{i:02d}.png")
    cut = folder / "a" / "04.png"
    cut.write_bytes(cut.read_bytes()[:70])
    return folder


@pytest.fixture(scope="module")
def ways(album, device) -> dict[str, ImageSet]:
    "The same images in three places, with batches on the device of the tests."
    resident = load_data(album, stream="device").to(device)
    return {
        "device": resident,
        "memory": load_data(album, stream="memory").fed(device),
        "files": load_data(album, stream="files", workers=2).to(device),
    }


ORDERS = {
    "all": None,
    "shuffled": epoch_order(22, seed=3, epoch=1),
    "with repeats": torch.tensor([5, 5, 21, 0, 5, 13, 0, 1, 2, 2, 2]),
    "one": torch.tensor([7]),
}


@pytest.mark.parametrize("bs", [1, 4, 5, 64])
@pytest.mark.parametrize("order", ORDERS)
def test_batches_are_the_same(ways, order, bs):
    expected = list(ways["device"].batches(bs, ORDERS[order]))
    for name in ("memory", "files"):
        for (i, x), (idx, other) in zip(
            expected, ways[name].batches(bs, ORDERS[order]), strict=True
        ):
            assert x.device == other.device and i.device == idx.device
            assert torch.equal(i, idx) and torch.equal(x, other) and x.dtype == other.dtype


def test_all_else_is_the_same(ways):
    resident = ways["device"]
    for name in ("memory", "files"):
        data = ways[name]
        assert data.fingerprint() == resident.fingerprint() and data.shape == resident.shape
        assert (data.paths, data.classes) == (resident.paths, resident.classes)
        assert torch.equal(data.y, resident.y) and data.skipped == resident.skipped
        assert [path for path, _ in data.skipped] == ["a/04.png"]
        half = data.y == 1
        assert data.subset(half).fingerprint() == resident.subset(half).fingerprint()
    assert isinstance(ways["files"].x, Files)
    assert np.array_equal(ways["files"].x, resident.x.cpu())


@pytest.mark.parametrize("name", ["mmdc", "scl", "digpro"])
def test_weights_are_the_same(ways, name, device):
    "Two passes, banks, groups and an E-step a run: every tensor of the method, bit for bit."
    states = {}
    for way, data in ways.items():
        options = {"k": 3, "profile": "ci", "epochs": 2, "device": str(device)}
        plan = make_plan(name, data, settings={"width": 4, "bs": 6}, **options)
        torch.manual_seed(0)
        method, views = METHODS[name].build(plan.recipe, data, 3, 0)
        fit(method.to(device), data, views, progress=False, **plan.recipe.fit_settings())
        states[way] = method.state_dict()
    for way in ("memory", "files"):
        assert same(states["device"], states[way])


def same(one: dict, other: dict) -> bool:
    "Whether two states hold the same numbers; a GPU may add them up in another order."
    equal = torch.equal if DEVICE == "cpu" else lambda a, b: torch.allclose(a, b, atol=1e-3)
    return one.keys() == other.keys() and all(equal(one[n], other[n]) for n in one)


# The command line


@pytest.fixture
def train(deepclust, tiny, photos, tmp_path, no_figures):
    "The run `photo_run` again, otherwise streamed, into `run`."

    def again(*more, data=photos):
        options = ["--data", data, "--k", 4, "--epochs", 3, "--out", tmp_path / "run"]
        return deepclust("train", "mmdc", *options, *tiny, *more)

    return again


def state_in(folder) -> dict:
    return RunFolder(folder).checkpoint()


def read(folder, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("way", STREAMED)
def test_a_streamed_run_is_the_run(train, photo_run, tmp_path, way):
    done = train(*STREAMED[way])
    assert done.code == 0, done.err
    one, other = state_in(photo_run), state_in(tmp_path / "run")
    assert same(one["method"], other["method"])
    assert read(photo_run, "config.json") == read(tmp_path / "run", "config.json")
    table = [(folder / "assignments.csv").read_text() for folder in (photo_run, tmp_path / "run")]
    assert table[0] == table[1] or DEVICE != "cpu"
    assert {"memory": "stay in host memory", "files": "2 processes read them"}[way] in done.out
    assert "data:image/png" in (tmp_path / "run" / "gallery.html").read_text()


@pytest.mark.parametrize("first,then", [("files", "memory"), ("memory", "files")])
def test_a_run_is_taken_up_from_another_place(train, photo_run, tmp_path, first, then):
    assert train(*STREAMED[first], "--stop-after", 1).code == 0
    done = train(*STREAMED[then], "--resume")
    assert done.code == 0, done.err
    assert same(state_in(photo_run)["method"], state_in(tmp_path / "run")["method"])


def test_a_limit_comes_before_reading(train, tmp_path, photos, monkeypatch):
    from deepclust_nb import data, pictures

    opened = []

    def watched(path, size):
        opened.append(path)
        return pictures.read_image(path, size), []

    monkeypatch.setattr(data, "try_read", lambda path, size: (watched(path, size)[0][0], []))
    resident = data.load_data(photos, limit=20)
    assert len(opened) == 20 == len(resident) and resident.paths != tuple(sorted(resident.paths))
    assert train("--limit", 20, *STREAMED["files"]).code == 0
    stored = read(tmp_path / "run", "config.json")
    assert stored["data"]["fingerprint"] == resident.fingerprint() and stored["limit"] == 20


def test_what_cannot_be_streamed(deepclust, tiny, tmp_path, photos):
    line = line_of(deepclust("train", "mmdc", "--data", "digits", *STREAMED["files"], *tiny))
    assert "arrays" in line and "--stream memory" in line
    line = line_of(deepclust("train", "mmdc", "--data", photos, "--k", 2, "--workers", 0, *tiny))
    assert "--workers" in line


# What can happen


def gone(pids, seconds: float = 30) -> bool:
    "Whether processes end within some time."
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if running(pid)]:
        if time.monotonic() > end:
            print("left:", alive)
            return False
        time.sleep(0.05)
    return True


def running(pid: int) -> bool:
    "Whether a process is there and not only waiting to be counted."
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")


@linux
def test_a_reader_that_is_killed(train, photo_run, tmp_path, monkeypatch):
    "In the third epoch: one line, the second epoch is kept, the other readers end."
    true, pids = engine.train_epoch, []

    def fatal(run, bar):
        if run.epoch == 2:
            pids.extend(run.data.x.readers._processes)
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(0.5)
        return true(run, bar)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "train_epoch", fatal)
        line = line_of(train(*STREAMED["files"]))
    assert "reads images ended" in line and "--resume" in line
    assert state_in(tmp_path / "run")["epoch"] == 2
    assert pids and gone(pids)
    assert train(*STREAMED["files"], "--resume").code == 0
    assert same(state_in(photo_run)["method"], state_in(tmp_path / "run")["method"])


def test_a_file_that_goes_bad_while_training(train, pictures, tmp_path, monkeypatch):
    folder, true = pictures(tmp_path / "data", 20), engine.train_epoch

    def fatal(run, bar):
        if run.epoch == 1:
            (folder / "digit007.png").write_text("no picture any more")
        return true(run, bar)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "train_epoch", fatal)
        line = line_of(train(*STREAMED["files"], data=folder))
    assert "digit007.png: not an image" in line and "--resume" in line
    assert state_in(tmp_path / "run")["epoch"] == 1
    line = line_of(train(*STREAMED["files"], "--resume", data=folder))
    assert "belongs to another run: data" in line  # one image less is another set


@linux
def hear_interrupts() -> None:
    "In a new process: Ctrl-C is heard, even if this one was started to ignore it, as by nohup."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_no_process_is_left(pictures, tmp_path, how):
    "Ctrl-C reaches all processes of the terminal, a kill only the parent."
    photos = pictures(tmp_path / "data", 40)
    args = ["--data", str(photos), "--k", "3", "--epochs", "500", "--out", "run", "--device", "cpu"]
    args += ["--profile", "ci", "--set", "width=4", "--set", "log_every=500"]
    command = [sys.executable, "-m", "deepclust_nb.cli", "train", "mmdc", *args]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(
        [*command, "--stream", "files", "--workers", "2"],
        **streams,
        cwd=tmp_path,
        env=env,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    group = [p for p in os.listdir("/proc") if p.isdigit() and of_group(int(p), run.pid)]
    assert len(group) >= 3  # itself and two readers
    number = getattr(signal, how)
    os.killpg(run.pid, number) if how == "SIGINT" else run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    assert gone(map(int, group)) and state_in(tmp_path / "run")["epoch"] >= 1
    assert run.returncode == {"SIGINT": 130}.get(how, -number), said
    if how == "SIGINT":
        assert "stopped; the last finished epoch is kept" in said and "Traceback" not in said


def of_group(pid: int, group: int) -> bool:
    "Whether a process belongs to a group of processes."
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def test_two_processes_read_their_shares(pictures, tmp_path):
    "Each decodes its part of a batch; what they train is what they train from memory."
    photos = pictures(tmp_path / "data", 30)
    args = ["-m", "deepclust_nb.cli", "train", "mmdc", "--data", str(photos), "--k", "3"]
    args += ["--profile", "ci", "--epochs", "2", "--set", "width=4", "--device", "cpu", "--out"]
    for way, options in STREAMED.items():
        call(*TWO, *args, way, *map(str, options), cwd=tmp_path)
    states = [state_in(tmp_path / way)["method"] for way in STREAMED]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Which images a run brings along


def test_images_without_labels_come_only_where_they_are_used(monkeypatch):
    def part_of(name, part, root, download):
        n = {"train": 4, "test": 6, "extra": 5}[part]
        return np.zeros((n, 96, 96, 3), np.uint8), np.arange(n, dtype=np.uint8) % 2

    monkeypatch.setattr("deepclust_nb.named.torchvision_arrays", part_of)
    options = {"k": 2, "device": "cpu", "profile": "ci"}
    found = {name: make_plan(name, "stl10", **options).data.extra for name in METHODS}
    assert {name for name, extra in found.items() if extra} == {"byol", "ncc", "digpro"}
    assert len(found["byol"]) == 5


def test_images_are_stored_as_large_as_the_recipe_sees_them(tmp_path):
    from deepclust_nb.named import IMAGENET10

    for synset in IMAGENET10:
        (tmp_path / "imagenet" / "train" / synset).mkdir(parents=True)
        Image.new("RGB", (240, 230)).save(tmp_path / "imagenet" / "train" / synset / "1.JPEG")
    options = {"root": tmp_path, "device": "cpu"}
    sides = {
        profile: make_plan("byol", "imagenet-10", profile=profile, **options).data.shape[1]
        for profile in ("laptop", "full")
    }
    assert sides == {"laptop": 96, "full": 224}
    asked = make_plan("byol", "imagenet-10", profile="full", size=32, **options)
    assert asked.data.shape[1] == 32
