"Sets known by name at the command line: what is counted, which part is trained on, and what a run remembers of it."

import json

import pytest
from PIL import Image

TRAIN = ["--data", "imagenet-10", "--size", 8, "--epochs", 2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory, digits):
    "A small ImageNet with the ten synsets: five training images of each, and two for validation."
    from deepclust_nb.named import IMAGENET10

    root = tmp_path_factory.mktemp("sets")
    for c, synset in enumerate(IMAGENET10):
        for part, n in (("train", 5), ("val", 2)):
            folder = root / "imagenet" / part / synset
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(digits[10 * n + c + i]).convert("RGB").save(folder / f"{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory, deepclust, sets, tiny):
    "What a run on the training part said, and its folder."
    out = tmp_path_factory.mktemp("trained") / "run"
    said = deepclust("train", "mmdc", *TRAIN, "--data-root", sets, "--out", out, *tiny)
    assert said.code == 0, said.err
    return said, out


def read(run, name: str):
    "A JSON file of a run."
    return json.loads((run / name).read_text(encoding="utf-8"))


def evaluated(deepclust, *args) -> dict:
    "What `evaluate` prints; nothing may be said against it."
    done = deepclust("evaluate", *args)
    assert (done.code, done.err) == (0, ""), done.err
    return json.loads(done.out)


def test_a_run_and_its_result_say_which_part_they_are_of(trained):
    said, run = trained
    assert "imagenet-10, train split: 50 images (3, 8, 8) into 10 clusters" in said.out
    assert "50 images of 13,000 published" in said.out
    assert read(run, "config.json")["data"]["split"] == "train"
    summary = read(run, "summary.json")
    assert (summary["data"], summary["split"], summary["n"]) == ("imagenet-10", "train", 50)


def test_a_run_is_evaluated_on_its_own_part_and_on_another(deepclust, trained, sets):
    run, where = trained[1], ["--data-root", sets, "--device", "cpu"]
    own = evaluated(deepclust, run, *where)
    assert (own["split"], own["n"]) == ("train", 50)
    assert own["acc"] == pytest.approx(read(run, "summary.json")["acc"], abs=1e-4)
    test = evaluated(deepclust, run, *where, "--split", "test")
    assert (test["data"], test["split"], test["n"]) == ("imagenet-10", "test", 20)
    assert test == evaluated(deepclust, run, *where, "--split", "test", "--data", "imagenet-10")
    assert evaluated(deepclust, run, *where, "--data", "imagenet-10") == own
    assert evaluated(deepclust, run, *where, "--split", "all")["n"] == 70


def test_a_run_on_all_images_goes_on_as_such(deepclust, sets, tiny, tmp_path):
    options = [*TRAIN, "--data-root", sets, "--out", tmp_path / "run", *tiny]
    assert deepclust("train", "mmdc", *options, "--split", "all", "--stop-after", 1).code == 0
    other = deepclust("train", "mmdc", *options, "--resume")
    assert other.code == 2 and "belongs to another run" in other.err
    assert deepclust("train", "mmdc", *options, "--split", "all", "--resume").code == 0
    assert read(tmp_path / "run", "summary.json")["n"] == 70


def test_a_run_from_before_there_were_splits_goes_on(deepclust, tiny, tmp_path):
    options = ["--data", "digits", "--limit", 60, "--epochs", 2, "--out", tmp_path / "run", *tiny]
    assert deepclust("train", "mmdc", *options, "--stop-after", 1).code == 0
    config = read(tmp_path / "run", "config.json")
    del config["data"]["split"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert evaluated(deepclust, tmp_path / "run", "--device", "cpu")["n"] == 60
    assert deepclust("train", "mmdc", *options, "--resume").code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data", "digits", "--split", "train"], "comes in one part"),
        (["--data", "digits", "--split", "val"], "--split"),
        (["--data", "photos", "--split", "train", "--k", 2], "only sets known by name"),
        (["--data", "imagenet-dogs", "--data-root", "."], "no folder imagenet-dogs or imagenet"),
    ],
)
def test_parts_that_are_not_there(deepclust, pictures, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos")
    done = deepclust("train", "mmdc", *args, "--out", "out")
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_counts_and_says_what_is_missing(deepclust, sets):
    done = deepclust("data", "imagenet-10", "--data-root", sets)
    assert done.code == 0, done.err
    assert "train  50 images of 13,000 published: king penguin 5 of 1300" in done.out
    assert "test   20 images of 500 published" in done.out
    assert "359.4 MB at 96 px" in done.out
    dogs = deepclust("data", "imagenet-dogs", "--data-root", sets)
    assert dogs.code == 2 and "no folder for n02086646 and 13 more" in dogs.err


def test_a_set_that_shall_lie_in_memory_is_refused_before_it_is_read(deepclust, sets, monkeypatch):
    from deepclust_nb import data

    monkeypatch.setattr(data, "free_memory", lambda: 1e6)
    args = ["train", "mmdc", "--data", "imagenet", "--data-root", sets]
    done = deepclust(*args, "--stream", "memory")
    assert done.code == 2 and "imagenet: 50 images of 3x224x224 need" in done.err
    assert "--stream files" in done.err and done.err.count("\n") == 1
    shown = deepclust("data", "imagenet", "--data-root", sets)
    assert shown.code == 0 and "192,851.5 MB at 224 px, streamed here" in shown.out
