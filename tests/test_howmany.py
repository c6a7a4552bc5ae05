"`deepclust howmany`: a range with its evidence, one line for what cannot be judged, and silence on noise."

import json

import numpy as np
import pytest

from conftest import DEVICE

SMALL = ["--profile", "ci", "--device", DEVICE, "--quiet"]


def heaps(k: int, n: int = 30, seed: int = 0) -> np.ndarray:
    "k heaps of n directions in five dimensions."
    rng = np.random.default_rng(seed)
    middles = np.eye(max(k, 5))[:k]
    return (middles.repeat(n, 0) + 0.12 * rng.normal(size=(k * n, max(k, 5)))).astype(np.float32)


@pytest.fixture
def answer(deepclust, tmp_path):
    "Ask about a table of features: what was said, and the figures."

    def call(h: np.ndarray, *options):
        np.save(tmp_path / "table.npy", h)
        out = tmp_path / "out"
        said = deepclust("howmany", tmp_path / "table.npy", "--out", out, *options)
        figures = out / "howmany.json"
        return said, json.loads(figures.read_text()) if figures.exists() else None

    return call


def test_heaps(answer, tmp_path):
    "The verdict is printed, the picture is there, and the figures hold the evidence."
    said, found = answer(heaps(4), "--max", 8)
    assert said.code == 0, said.err
    assert found["low"] <= 4 <= found["high"] and found["best"] == 4
    assert found["verdict"] in said.out and "howmany.png" in said.out
    assert (tmp_path / "out" / "howmany.png").read_bytes()[:4] == b"\x89PNG"
    names = [w["name"] for w in found["witnesses"]]
    assert names == ["merge tree", "stability"]
    assert all(len(w[key]) == 7 for w in found["witnesses"] for key in ("values", "null_low"))


@pytest.mark.parametrize(
    "h",
    [
        np.random.default_rng(0).normal(size=(200, 6)),
        np.random.default_rng(1).uniform(size=(200, 64)),
        heaps(1, 200),
        1 + 0.01 * np.random.default_rng(2).normal(size=(200, 8)),
    ],
    ids=["gaussian", "uniform", "one cluster", "collapsed but for noise"],
)
def test_i_cannot_tell(answer, h):
    "No number comes out of features without groups."
    said, found = answer(h, "--max", 8)
    assert said.code == 0 and "I cannot tell" in said.out
    assert found["low"] is None and found["high"] is None and found["best"] is None


def test_copies_are_one_image(answer):
    "Ten copies of every tenth point are no group of their own."
    h = heaps(3)
    _, found = answer(np.concatenate([h, h[::10].repeat(10, 0)]), "--max", 7)
    assert (found["n"], found["total"]) == (90, 180) and found["best"] == 3


def test_seeds(answer):
    "The same seed gives the same answer; another seed looks elsewhere and agrees."
    first, again, other = (answer(heaps(3), "--max", 7, "--seed", s)[1] for s in (1, 1, 2))
    assert first == again
    assert first["witnesses"] != other["witnesses"] and first["best"] == other["best"] == 3


@pytest.mark.parametrize(
    ("h", "options", "line"),
    [
        (heaps(3), ["--max", 1000], "max=1000: for 90 different images give --max from 3 to 9"),
        (heaps(3), ["--max", 2], "max=2"),
        (heaps(3, 4), [], "12 different images: how many clusters cannot be judged below 40"),
        (np.ones((500, 3)), [], "1 different images"),
        (np.full((90, 3), np.nan), [], "NaN"),
        (np.ones(90), [], "(N,D) is needed"),
        (np.array(["a"] * 90), [], "no table of numbers"),
    ],
    ids=["max above N", "max too small", "few", "collapsed", "NaN", "flat", "text"],
)
def test_what_cannot_be_judged(answer, h, options, line):
    "One line that says what to do, exit code 2, and nothing is written."
    said, found = answer(h, *options)
    assert said.code == 2 and line in said.err and said.err.count("\n") == 1
    assert found is None


def test_a_pickle_is_never_opened(deepclust, tmp_path):
    "A table that could run code is refused."
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    said = deepclust("howmany", tmp_path / "evil.npy", "--out", tmp_path / "out")
    assert said.code == 2 and "no table of numbers" in said.err


def test_a_folder(deepclust, photos, tmp_path):
    "A network that is told no K is trained on the pictures, and says so."
    said = deepclust("howmany", photos, "--out", tmp_path / "out", *SMALL)
    assert said.code == 0, said.err
    assert "60 images" in said.out and "told no K" in said.out
    found = json.loads((tmp_path / "out" / "howmany.json").read_text())
    assert found["total"] == 60 and found["warning"] == "" and found["verdict"] in said.out


def test_a_run_that_was_told_k(deepclust, photo_run, tmp_path):
    "Its features lean to that K, and the answer says so."
    said = deepclust("howmany", photo_run, "--out", tmp_path / "out", "--device", DEVICE)
    assert said.code == 0, said.err
    assert "trained towards K=4 by mmdc" in said.out
    assert "K=4" in json.loads((tmp_path / "out" / "howmany.json").read_text())["warning"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--method", "ncc"], "is told how many clusters"),
        (["--max", 50], "for 60 different images give --max from 3 to 6"),
    ],
)
def test_refused_before_training(deepclust, photos, tmp_path, options, line):
    said = deepclust("howmany", photos, "--out", tmp_path / "out", *SMALL, *options)
    assert said.code == 2 and line in said.err and "told no K" not in said.out


def test_pictures_are_not_written_among_the_images(deepclust, photos):
    said = deepclust("howmany", photos, "--out", photos / "answer", *SMALL)
    assert said.code == 2 and "choose a folder outside" in said.err
    assert not (photos / "answer").exists()


def test_out_that_is_a_file(deepclust, tmp_path):
    np.save(tmp_path / "table.npy", heaps(3))
    (tmp_path / "out").write_text("mine")
    said = deepclust("howmany", tmp_path / "table.npy", "--max", 5, "--out", tmp_path / "out")
    assert said.code == 2 and said.err.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


def test_help_teaches(deepclust):
    said = deepclust("howmany", "--help")
    assert said.code == 0
    for word in ("I cannot tell", "stability", "merge tree", "--max", "lean to it"):
        assert word in said.out
