"A long tail of a run is made again by whoever reads the run, and nobody else's images are cut."

import json

import pytest
import torch

from deepclust_nb.data import ImageSet, load_data, long_tailed, tail_sizes
from deepclust_nb.howmany import of_run
from deepclust_nb.named import DATASETS
from deepclust_nb.refine import images_of
from deepclust_nb.train import evaluate_run, make_plan

TAIL = ["--data", "digits", "--limit", 300, "--long-tail", "10,4", "--epochs", 2]


@pytest.fixture(scope="module")
def tailed():
    "The images that TAIL names."
    return load_data("digits", limit=300, tail=(10, 4))


@pytest.fixture
def run(deepclust, tmp_path, tiny):
    "A run on them, stopped after one epoch and taken up."
    options = ["mmdc", *TAIL, "--out", tmp_path / "run", *tiny]
    for more in (["--stop-after", 1], ["--resume"]):
        done = deepclust("train", *options, *more)
        assert done.code == 0, done.crash or done.err
    return tmp_path / "run", options, done


def test_the_run_says_it(run, tailed):
    folder, _, done = run
    config = json.loads((folder / "config.json").read_text())["data"]
    summary = json.loads((folder / "summary.json").read_text())
    assert config["long_tail"] == summary["long_tail"] == [10, 4]
    assert config["n"] == summary["n"] == len(tailed) < 300
    assert config["fingerprint"] == tailed.fingerprint()
    assert "long tail" in done.out and "expected:" not in done.out


def test_evaluate_makes_the_same_set_and_leaves_others_alone(run, deepclust):
    summary = json.loads((run[0] / "summary.json").read_text())
    own = deepclust("evaluate", run[0])
    assert own.code == 0 and "not those" not in own.err, own.crash or own.err
    found = json.loads(own.out)
    assert found["long_tail"] == [10, 4] and found["n"] == summary["n"]
    for name in ("acc", "recall"):
        assert found[name] == pytest.approx(summary[name], abs=1e-4)
    other = json.loads(deepclust("evaluate", run[0], "--data", "digits").out)
    assert other["long_tail"] is None and other["n"] == 1797


def test_others_that_read_a_run_make_the_same_set(run, tailed):
    h, data, _ = of_run(run[0], device="cpu")
    again, _ = images_of(run[0])
    assert data.fingerprint() == again.fingerprint() == tailed.fingerprint()
    assert len(h) == len(tailed) and torch.equal(again.y, tailed.y)


def test_a_run_is_not_taken_up_with_another_tail(run, deepclust):
    options = [{"10,4": "10,5"}.get(part, part) for part in run[1]]
    done = deepclust("train", *options, "--resume")
    assert done.code == 2 and "another run" in done.last


def test_only_the_part_that_is_trained_on_is_cut(tmp_path):
    from PIL import Image

    for split in ("train", "val"):  # a set known by name that has both parts, made here
        for c in DATASETS["imagenet-10"].synsets:
            folder = tmp_path / "imagenet-10" / split / c
            folder.mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(folder / f"{i}.png")
    parts = {s: load_data("imagenet-10", root=tmp_path, split=s) for s in ("train", "test")}
    options = {"root": tmp_path, "split": "train", "device": "cpu", "tail": (6, 0)}
    plan = make_plan("mmdc", "imagenet-10", profile="ci", **options)
    assert sorted(plan.data.y.bincount().tolist()) == sorted(tail_sizes(12, 10, 6).tolist())
    assert plan.data.split == "train" and len(parts["train"]) == len(parts["test"]) == 120
    assert parts["test"].tail is None


def test_labels_make_the_set_and_nothing_else():
    digits = load_data("digits")
    plan = make_plan("mmdc", long_tailed(digits, 5), device="cpu")
    assert all(len(batch) == 2 for batch in plan.data.batches(64))  # positions and pixels
    renamed = ImageSet(plan.data.x, y=9 - plan.data.y)
    assert plan.data.fingerprint() == renamed.fingerprint()


WRONG = {
    "below one": ("0.5", "from 1 on"),
    "a word": ("many", "RATIO"),
    "a seed that is a word": ("3,b", "ratio,seed"),
    "three numbers": ("3,1,2", "ratio,seed"),
    "not a number": ("nan", "from 1 on"),
    "larger than a class": ("1000", "smaller ratio"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_tails_are_refused(deepclust, tmp_path, wrong):
    text, says = WRONG[wrong]
    options = ["--data", "digits", "--long-tail", text, "--out", tmp_path / "run"]
    done = deepclust("train", "mmdc", *options)
    assert done.code == 2 and says.lower() in done.last.lower(), done.last
    assert not (tmp_path / "run").exists()


def test_images_without_labels_have_no_tail(deepclust, photos, tmp_path):
    options = ["--data", photos, "--k", 2, "--long-tail", 3, "--out", tmp_path / "run"]
    done = deepclust("train", "mmdc", *options)
    assert done.code == 2 and "no labels" in done.last


def test_evaluate_run_says_on_which_set(run, tailed):
    assert evaluate_run(run[0], tailed, "cpu")["long_tail"] == [10, 4]
    assert evaluate_run(run[0], load_data("digits", limit=50), "cpu")["long_tail"] is None
