"""Wrong input: exit code 2, one line that says what and what to do, and nothing on disk has changed."""

import csv
import html
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

# What is asked


@pytest.fixture
def refused(deepclust, tmp_path, tiny, listing, monkeypatch, no_figures):
    "Run a command in a folder of its own; it must be refused cleanly. Returns its line."
    monkeypatch.chdir(tmp_path)

    def call(*args) -> str:
        more = tiny if args[0] == "train" else []
        before = listing(tmp_path)
        done = deepclust(args[0], *args[1:2], *more, *args[2:])
        assert not done.crash
        assert done.code == 2, f"ended with {done.code}: {done.out}"
        assert re.fullmatch(r"deepclust: [^\n]{10,}\n", done.last), done.err
        assert listing(tmp_path) == before, "something on disk changed"
        return done.last

    return call


@pytest.fixture
def train(deepclust, tmp_path, tiny, monkeypatch, no_figures):
    "Train two epochs in a folder of its own; must succeed. Returns what it said."
    monkeypatch.chdir(tmp_path)

    def call(*args):
        done = deepclust("train", "mmdc", *tiny, "--epochs", 2, *args)
        assert done.code == 0, done.crash or done.last
        return done

    return call


DIGITS = ["--data", "digits", "--limit", 60, "--epochs", 2, "--out", "out"]
WRONG = {
    "more clusters than images": (["--k", 61], "k=61 clusters for 60 images"),
    "one cluster": (["--k", 1], "at least 2"),
    "no cluster": (["--k", 0], "at least 2"),
    "negative k": (["--k", -3], "at least 2"),
    "k is a word": (["--k", "ten"], "--k"),
    "unknown setting": (["--set", "widht=4"], "did you mean width"),
    "setting without value": (["--set", "width"], "name=value"),
    "setting of another type": (["--set", "lr=fast"], "lr=fast"),
    "fraction for a whole number": (["--set", "bs=1.5"], "bs=1.5"),
    "width is a word": (["--set", "width=wide"], "width"),
    "no width": (["--set", "width=-1"], "width"),
    "no batch": (["--set", "bs=0"], "bs"),
    "negative batch": (["--set", "bs=-4"], "bs"),
    "never look": (["--set", "log_every=0"], "log_every"),
    "negative rate": (["--set", "lr=-1"], "lr"),
    "rate is no number": (["--set", "lr=nan"], "lr"),
    "one drop": (["--set", "drops=0.5"], "drops"),
    "no copies": (["--set", "copies=0"], "copies"),
    "unknown choice": (["--set", "cost=cosine"], "use one of"),
    "sphere too small": (["--set", "dim=3"], "dim"),
    "dim is a word": (["--set", "dim=big"], "dim"),
    "crop larger than images": (["--set", "crops=(20,)", "--set", "size=8"], "crops"),
    "crops of words": (["--set", "crops=large"], "crops"),
    "crop without size": (["--set", "crops=(6,)"], "size"),
    "unknown backbone": (["--backbone", "alexnet"], "backbone"),
    "unknown stem": (["--set", "stem=wide"], "stem"),
    "unknown profile": (["--profile", "huge"], "--profile"),
    "unknown device": (["--device", "tpu9000"], "device"),
    "device without memory": (["--device", "meta"], "device"),
    "no epochs": (["--epochs", 0], "epochs"),
    "negative epochs": (["--epochs", -1], "epochs"),
    "fewer epochs than stages": (["--epochs", 1], "epochs=1"),
    "stop after none": (["--stop-after", 0], "stop"),
    "stop after fewer": (["--stop-after", -1], "stop"),
    "one image": (["--limit", 1], "limit=1"),
    "negative limit": (["--limit", -5], "limit=-5"),
    "a seed and seeds": (["--seed", 1, "--seeds", "0,1"], "choose one"),
    "seeds are words": (["--seeds", "a,b"], "--seeds"),
    "enormous seed": (["--seed", 2**70], "seed"),
    "pixels too few": (["--size", 4], "size=4"),
    "resume and overwrite": (["--resume", "--overwrite"], "--resume"),
    "unknown init": (["--init", "nowhere"], "nowhere"),
    "unknown option": (["--colour"], "--colour"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_option(refused, wrong):
    options, says = WRONG[wrong]
    assert says in refused("train", "mmdc", *DIGITS, *options)


def test_a_wrong_option_does_not_cost_the_old_run(refused, train):
    train("--data", "digits", "--limit", 60, "--out", "out")
    for options in (["--set", "cost=cosine"], ["--init", "nowhere"], ["--set", "dim=3"]):
        refused("train", "mmdc", *DIGITS, "--overwrite", *options)


LSDC_WRONG = {
    "rule": ("rule=mutual", "knn"),
    "space": ("space=pixels", "predictions"),
    "mixing": ("mixing=cutmix", "ricap"),
    "axis": ("axis=both", "release"),
    "labelled view": ("plain=none", "clean"),
    "neighbours": ("neighbours=0", "neighbours=0"),
    "too many frozen blocks": ("train_last=9", "train_last=9"),
    "threshold is a word": ("threshold=near", "threshold=near"),
    "beta": ("beta=0", "beta=0"),
    "one mean, no spread": ("mean=(0.5,)", "std"),
    "means of colours": (("mean=(0.5,0.5,0.5)", "std=(1,1,1)"), "channels"),
    "start": ("init=nowhere", "nowhere"),
}


@pytest.mark.parametrize("wrong", LSDC_WRONG)
def test_wrong_setting_of_lsdc(refused, wrong):
    settings, says = LSDC_WRONG[wrong]
    settings = (settings,) if isinstance(settings, str) else settings
    options = [part for setting in settings for part in ("--set", setting)]
    assert says in refused("train", "lsdc", *DIGITS, *options)


SCL_WRONG = {
    "judge": ("judge=labels", "vote"),
    "balance": ("balance=yes", "sinkhorn"),
    "refresh": ("refresh=never", "epoch"),
    "momentum above 1": ("momentum=1.5", "momentum=1.5"),
    "no slots": ("slots=0", "slots=0"),
    "temperature": ("tau=0", "tau=0"),
    "schedule": ("schedule=linear", "cosine"),
    "weights": ("weights=zero", "torch"),
    "area above 1": ("area=2", "area=2"),
    "area without a size": ("area=0.5", "size"),
    "fraction": ("centre=maybe", "bool"),
}


@pytest.mark.parametrize("wrong", SCL_WRONG)
def test_wrong_setting_of_scl(refused, wrong):
    setting, says = SCL_WRONG[wrong]
    assert says in refused("train", "scl", *DIGITS, "--set", setting)


CHAIN_WRONG = {
    "decay": ("byol", "decay=none", "weights"),
    "one dimension": ("byol", "dim=1", "dim=1"),
    "E-step": ("byol", "every=0", "every=0"),
    "momentum above 1": ("byol", "top=1.5", "top=1.5"),
    "noise": ("ncc", "sigma=-1", "sigma=-1"),
    "around": ("ncc", "around=sphere", "unit"),
    "soft": ("ncc", "soft=0", "soft=0"),
    "divisor": ("ncc", "divisor=some", "present"),
    "quiet": ("ncc", "quiet=-1", "quiet=-1"),
    "queue": ("ncc", "queue=-5", "queue=-5"),
    "balanced": ("ncc", "balanced=often", "bool"),
    "anchor": ("digpro", "anchor=backbone", "projector"),
    "no groups": ("digpro", "groups=0", "groups=0"),
    "groups that are not the clusters": ("digpro", ("groups=5", "read=groups"), "groups=5"),
    "beta above 1": ("digpro", "beta=2", "beta=2"),
    "no slots": ("digpro", "slots=0", "slots=0"),
    "bank smaller than groups": ("digpro", "slots=5", "slots=5"),
    "pace": ("digpro", "pace=never", "epoch"),
}


@pytest.mark.parametrize("wrong", CHAIN_WRONG)
def test_wrong_setting_of_byol_ncc_digpro(refused, wrong):
    method, settings, says = CHAIN_WRONG[wrong]
    settings = (settings,) if isinstance(settings, str) else settings
    options = [part for setting in settings for part in ("--set", setting)]
    assert says in refused("train", method, *DIGITS, *options)


def test_unknown_method(refused):
    assert "use one of mmdc" in refused("train", "kmeans", *DIGITS)
    assert "use one of mmdc" in refused("methods", "kmeans")
    assert "use one of mmdc" in refused("bench", "kmeans")


def test_no_data_named(refused):
    assert "--data" in refused("train", "mmdc")


def test_unknown_data(refused):
    assert "did you mean digits" in refused("train", "mmdc", "--data", "digit", "--k", 2)
    assert "did you mean mnist" in refused("data", "mnsit")


def test_data_that_was_not_downloaded(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "mnist" in refused("train", "mmdc", "--data", "mnist", "--data-root", "empty")


def test_bench_of_nothing(refused):
    tiny = ["--width", 4, "--side", 16, "--device", "cpu"]
    for options in (["--bs", 0], ["--times", 0], ["--bs", -2], ["--side", 0]):
        refused("bench", "mmdc", *tiny, *options)


# Images


def in_folder(refused, *more) -> str:
    return refused("train", "mmdc", "--data", "data", "--k", 2, "--out", "out", *more)


def test_folder_without_labels_needs_k(refused, pictures, tmp_path):
    pictures(tmp_path / "data")
    line = refused("train", "mmdc", "--data", "data", "--out", "out")
    assert "--k" in line


def test_empty_folder(refused, tmp_path):
    (tmp_path / "data").mkdir()
    assert "no image found" in in_folder(refused)
    assert "no image found" in refused("data", "data")


def test_folder_of_text_files(refused, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.txt", "b.csv", "c"):
        (tmp_path / "data" / name).write_text("no image", encoding="utf-8")
    assert "no image found (3 files looked at" in in_folder(refused)


def test_all_images_corrupt(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "data" / "b.jpg").write_bytes(b"")
    assert "none of 2 images can be read" in in_folder(refused)


def test_one_image(refused, pictures, tmp_path):
    pictures(tmp_path / "data", 1)
    assert "at least 2" in in_folder(refused)


def test_single_file_as_data(refused, pictures, tmp_path):
    pictures(tmp_path, 1)
    assert "folder" in refused("train", "mmdc", "--data", "digit000.png", "--k", 2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_handful_of_images_is_clustered(train, pictures, tmp_path, n):
    pictures(tmp_path / "data", n)
    train("--data", "data", "--k", 2, "--out", "out")
    assert len((tmp_path / "out" / "assignments.csv").read_text().splitlines()) == n + 1


def test_as_many_clusters_as_images(train, pictures, tmp_path):
    pictures(tmp_path / "data", 8)
    train("--data", "data", "--k", 8, "--out", "out")


def test_equal_images_are_clustered(train, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(12):
        Image.new("L", (8, 8), 70).save(tmp_path / "data" / f"{i}.png")
    train("--data", "data", "--k", 3, "--out", "out")


def test_a_corrupt_image_among_good_ones_is_listed(train, pictures, tmp_path):
    folder = pictures(tmp_path / "data", 12)
    whole = (folder / "digit003.png").read_bytes()
    (folder / "digit003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    said = train("--data", "data", "--k", 2, "--out", "out").out
    assert "skipped digit003.png" in said and "skipped empty.jpg" in said
    rows = (tmp_path / "out" / "assignments.csv").read_text(encoding="utf-8")
    assert "digit003" not in rows and len(rows.splitlines()) == 12


def test_every_kind_of_image_is_converted_and_said(train, tmp_path, digits):
    folder = tmp_path / "data"
    folder.mkdir()
    grey = [Image.fromarray(digits[i]).resize((16, 16)) for i in range(14)]
    Image.fromarray(np.asarray(grey[0]).astype(np.uint16) * 257).save(folder / "sixteen.png")
    grey[1].convert("RGB").quantize(8).save(folder / "palette.png")
    grey[2].save(folder / "grey.png")
    grey[3].convert("RGB").convert("RGBA").save(folder / "alpha.png")
    grey[4].convert("CMYK").save(folder / "cmyk.jpg")
    grey[5].convert("1").save(folder / "bits.png")
    grey[6].convert("LA").save(folder / "greyalpha.png")
    for i in (7, 8, 9):
        grey[i].convert("RGB").save(folder / f"colour{i}.jpg")
    said = train("--data", "data", "--k", 2, "--out", "out").out
    for words in ("16-bit", "palette", "transparent", "CMYK", "grey among colour", "black and"):
        assert words in said, words
    assert "10 images (3, 16, 16)" in said


def test_mixed_sizes_are_said(train, tmp_path, digits):
    (tmp_path / "data").mkdir()
    for i, size in enumerate([(16, 16), (20, 30), (33, 17), (16, 16), (9, 12), (40, 40)]):
        Image.fromarray(digits[i]).resize(size).save(tmp_path / "data" / f"{i}.png")
    said = train("--data", "data", "--k", 2, "--out", "out").out
    assert re.search(r"\d of 6 images: brought to (\d+)x\1 px", said)


def test_other_files_among_images_are_said(train, pictures, tmp_path):
    (pictures(tmp_path / "data") / "notes.txt").write_text("hello", encoding="utf-8")
    assert "1 files ignored" in train("--data", "data", "--k", 2, "--out", "out").out


def test_folder_called_like_a_built_in_set(train, pictures, tmp_path):
    pictures(tmp_path / "mine" / "mnist")
    train("--data", tmp_path / "mine" / "mnist", "--k", 2, "--out", "out")


NAMES = ["comma,quote'.png", 'double"quote.png', "two\nlines.png", " space .png", "semi;tab\t.png"]
NAMES += ["<script>alert(1)</script>".replace("/", "\u2215") + ".png", "&amp; ü 猫.png", "=1+1.png"]


def test_odd_file_names_are_kept_in_table_and_page(train, pictures, tmp_path):
    folder = pictures(tmp_path / "data", len(NAMES))
    for old, new in zip(sorted(folder.iterdir()), NAMES):
        old.rename(folder / new)
    train("--data", "data", "--k", 2, "--out", "out")
    with open(tmp_path / "out" / "assignments.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert all(len(row) == 3 for row in rows)
    assert sorted(row[0] for row in rows[1:]) == sorted(NAMES)
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "<script>" not in page and page.count("<script") == 1  # the page's own
    alts = html.unescape(page)
    assert all(name.splitlines()[0] in alts for name in NAMES)


def test_a_carriage_return_in_a_name_is_quoted(train, pictures, tmp_path):
    folder = pictures(tmp_path / "data", 6)
    (folder / "digit000.png").rename(folder / "return\rhere.png")
    train("--data", "data", "--k", 2, "--out", "out")
    with open(tmp_path / "out" / "assignments.csv", encoding="utf-8", newline="") as file:
        assert "return\rhere.png" in [row[0] for row in csv.reader(file)]


def test_a_title_of_html_is_escaped(train, pictures, tmp_path):
    folder = pictures(tmp_path / "<img src=x onerror=alert(1)>")
    train("--data", folder, "--k", 2, "--out", "out")
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "&lt;img src=x" in page


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_file_name_that_is_no_text(train, pictures, tmp_path):
    folder = pictures(tmp_path / "data", 6)
    try:
        os.rename(folder / "digit000.png", os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        return  # this file system takes only text
    train("--data", "data", "--k", 2, "--out", "out")


# .npz files


BAD_ARRAYS = {
    "no images": ({"x": np.zeros((9, 8, 8), np.uint8)}, "no array named 'images'"),
    "floats": ({"images": np.zeros((9, 8, 8))}, "float64"),
    "wide integers": ({"images": np.zeros((9, 8, 8), np.int64)}, "int64"),
    "channels first": ({"images": np.zeros((9, 3, 8, 8), np.uint8)}, "shape"),
    "flat": ({"images": np.zeros((9, 64), np.uint8)}, "shape"),
    "nothing": ({"images": np.zeros((0, 8, 8), np.uint8)}, "shape"),
    "no pixels": ({"images": np.zeros((9, 0, 8), np.uint8)}, "shape"),
    "a pixel each": ({"images": np.zeros((9, 1, 1), np.uint8)}, "px"),
    "labels too few": ({"images": np.zeros((9, 8, 8), np.uint8), "labels": [1, 2]}, "labels"),
    "labels of floats": (
        {"images": np.zeros((9, 8, 8), np.uint8), "labels": np.ones(9)},
        "labels",
    ),
    "label without name": (
        {
            "images": np.zeros((9, 8, 8), np.uint8),
            "labels": np.full(9, 4),
            "class_names": ["a", "b"],
        },
        "labels",
    ),
    "one class name": (
        {"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros(9, int), "class_names": "a"},
        "class",
    ),
}


@pytest.mark.parametrize("wrong", BAD_ARRAYS)
def test_wrong_arrays(refused, tmp_path, wrong):
    arrays, says = BAD_ARRAYS[wrong]
    np.savez(tmp_path / "bad.npz", **arrays)
    assert says in refused("train", "mmdc", "--data", "bad.npz", "--k", 2, "--out", "out")


class Bomb:
    "Writes a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("name", ["images", "labels"])
def test_pickled_arrays_are_not_run(refused, tmp_path, name):
    arrays = {"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros(9, int)}
    arrays[name] = np.array([Bomb(tmp_path / "boom")] * 9, dtype=object)
    np.savez(tmp_path / "bad.npz", **arrays)
    assert "bad.npz" in refused("train", "mmdc", "--data", "bad.npz", "--k", 2, "--out", "out")
    assert not (tmp_path / "boom").exists()


def test_npz_that_is_none(refused, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    assert "bad.npz" in refused("data", "bad.npz")


# Where the run goes


def test_out_is_a_file(refused, tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert "out" in refused("train", "mmdc", *DIGITS)
    refused("train", "mmdc", *DIGITS, "--overwrite")


def test_out_below_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "file" in refused("train", "mmdc", *DIGITS, "--out", "file/run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in refused("train", "mmdc", *DIGITS, "--out", "locked/run")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody may fill")
def test_out_where_nothing_can_be_made(refused):
    assert "/proc/run" in refused("train", "mmdc", *DIGITS, "--out", "/proc/run")


@pytest.mark.parametrize("how", [[], ["--resume"], ["--overwrite"]])
def test_out_holds_something_else(refused, tmp_path, how):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "another --out" in refused("train", "mmdc", *DIGITS, *how)


def test_overwrite_deletes_no_folder_that_only_looks_like_a_run(refused, tmp_path):
    (tmp_path / "out" / "epochs").mkdir(parents=True)
    (tmp_path / "out" / "epochs" / "thesis.txt").write_text("mine", encoding="utf-8")
    refused("train", "mmdc", *DIGITS, "--overwrite")


def test_overwrite_deletes_no_project_with_a_configuration_of_its_own(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"name": "my web site"}', encoding="utf-8")
    (tmp_path / "out" / "index.html").write_text("mine", encoding="utf-8")
    refused("train", "mmdc", *DIGITS, "--overwrite")


def test_overwrite_through_a_link(train, tmp_path):
    train("--data", "digits", "--limit", 60, "--out", "real")
    (tmp_path / "out").symlink_to(tmp_path / "real", target_is_directory=True)
    train("--data", "digits", "--limit", 60, "--out", "out", "--overwrite")


def test_a_run_inside_its_own_folder_of_images(refused, pictures, tmp_path):
    "Its pictures would be images of the set the next time."
    pictures(tmp_path / "data", 12)
    line = refused("train", "mmdc", "--data", "data", "--k", 2, "--out", "data/run")
    assert "inside" in line


def test_out_holds_a_run(refused, train):
    train("--data", "digits", "--limit", 60, "--out", "out")
    line = refused("train", "mmdc", *DIGITS)
    assert "--resume" in line and "--overwrite" in line
    others = {"data": ["--limit", 50], "lr": ["--set", "lr=0.01"], "seed": ["--seed", 3]}
    others |= {"main_epochs": ["--epochs", 9], "k": ["--k", 5]}
    for name, options in others.items():
        assert name in refused("train", "mmdc", *DIGITS, "--resume", *options)


def test_run_of_other_data_is_named(refused, train, pictures, tmp_path):
    pictures(tmp_path / "data", 12)
    pictures(tmp_path / "other", 12, first=20)
    train("--data", "data", "--k", 2, "--out", "out")
    line = refused(
        *("train", "mmdc", "--data", "other", "--k", 2, "--epochs", 2, "--out", "out", "--resume")
    )
    assert "belongs to another run" in line


def test_one_of_several_seeds_has_a_run_already(refused, train):
    train("--data", "digits", "--limit", 60, "--out", "out/seed1", "--seed", 1)
    assert "seed1" in refused("train", "mmdc", *DIGITS, "--seeds", "0,1")


def test_overwrite_replaces_the_run(train, tmp_path):
    train("--data", "digits", "--limit", 60, "--out", "out")
    (tmp_path / "out" / "old.txt").write_text("of the old run", encoding="utf-8")
    train("--data", "digits", "--limit", 50, "--out", "out", "--overwrite")
    rows = (tmp_path / "out" / "assignments.csv").read_text(encoding="utf-8")
    assert len(rows.splitlines()) == 51
    assert sorted(p.name for p in (tmp_path / "out" / "epochs").iterdir()) == [
        "0001.npz",
        "0002.npz",
    ]


# Damaged runs


@pytest.fixture
def old_run(train, tmp_path):
    "A run of 60 digits, stopped after one of two epochs."
    train("--data", "digits", "--limit", 60, "--out", "out", "--stop-after", 1)
    return tmp_path / "out"


@pytest.fixture
def picture(pictures, tmp_path):
    "One image to ask about."
    return pictures(tmp_path / "one", 1) / "digit000.png"


def all_refuse(refused, picture) -> list[str]:
    "What every command that reads a run says."
    return [
        refused("train", "mmdc", *DIGITS, "--resume"),
        refused("evaluate", "out"),
        refused("predict", "out", picture),
    ]


def test_malicious_checkpoint_is_not_run(refused, old_run, picture, tmp_path):
    torch.save({"method": Bomb(tmp_path / "boom")}, old_run / "checkpoint.pt")
    assert all("checkpoint.pt" in line for line in all_refuse(refused, picture))
    assert "checkpoint.pt" in refused("train", "mmdc", *DIGITS, "--out", "new", "--init", "out")
    assert not (tmp_path / "boom").exists()


def test_bare_pickle_as_checkpoint_is_not_run(refused, old_run, picture, tmp_path):
    (old_run / "checkpoint.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    assert all("checkpoint.pt" in line for line in all_refuse(refused, picture))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("part", [0, 100, 0.5, 0.99])
def test_truncated_checkpoint(refused, old_run, picture, part):
    whole = (old_run / "checkpoint.pt").read_bytes()
    keep = int(part * len(whole)) if part < 1 else part
    (old_run / "checkpoint.pt").write_bytes(whole[:keep])
    assert all("checkpoint.pt" in line for line in all_refuse(refused, picture))


@pytest.mark.parametrize("value", [{}, [1, 2], {"method": {}, "epoch": 1}])
def test_checkpoint_of_something_else(refused, old_run, picture, value):
    torch.save(value, old_run / "checkpoint.pt")
    assert all("checkpoint.pt" in line for line in all_refuse(refused, picture))


def test_checkpoint_of_another_network(refused, old_run, picture, train):
    train("--data", "digits", "--limit", 60, "--out", "wide", "--set", "width=6")
    (old_run / "checkpoint.pt").write_bytes((old_run.parent / "wide/checkpoint.pt").read_bytes())
    assert all("checkpoint" in line for line in all_refuse(refused, picture))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", '{"data": 3}', "\udcff{}"])
def test_corrupt_configuration(refused, old_run, picture, text):
    (old_run / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    all_refuse(refused, picture)


def test_corrupt_metrics(refused, old_run):
    (old_run / "metrics.jsonl").write_text('{"epoch": 1\n', encoding="utf-8")
    assert "metrics.jsonl" in refused("train", "mmdc", *DIGITS, "--resume")


def test_init_from_another_network(refused, old_run):
    line = refused(*("train", "mmdc", *DIGITS, "--out", "new", "--init", "out"), "--set", "width=6")
    assert "network differs" in line


def test_commands_on_what_is_no_run(refused, picture, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere", picture):
        assert "no run" in refused("evaluate", folder)
        assert "no run" in refused("predict", folder, picture)


def test_predict_on_what_is_no_image(refused, old_run, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "text.txt").write_text("no image", encoding="utf-8")
    for source in ("none", "text.txt", "missing.png"):
        assert source in refused("predict", "out", source)


def test_predict_where_it_cannot_write(refused, old_run, picture, tmp_path):
    (tmp_path / "folder").mkdir()
    for out in ("folder", "missing/table.csv", "text.txt/table.csv"):
        assert out in refused("predict", "out", picture, "--out", out)


def test_evaluate_on_images_of_other_channels(refused, old_run, tmp_path):
    np.savez(tmp_path / "colour.npz", images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9))
    assert "colour" in refused("evaluate", "out", "--data", "colour.npz")


def test_probe_with_too_few_images(refused, old_run, tmp_path, digits):
    np.savez(tmp_path / "few.npz", images=digits[:9], labels=np.arange(9))
    refused("evaluate", "out", "--data", "few.npz", "--probe")


# Losses that blow up


def test_rate_too_large_stops_and_names_the_term(deepclust, tmp_path, tiny):
    options = ["--data", "digits", "--limit", 300, "--epochs", 3, "--out", tmp_path / "out"]
    done = deepclust("train", "mmdc", *options, *tiny, "--set", "lr=1e30")
    assert not done.crash and done.code == 2
    assert re.fullmatch(r"deepclust: [^\n]*loss[^\n]*not finite[^\n]*lr[^\n]*\n", done.last)


@pytest.mark.parametrize("n", [60, 300])  # one batch an epoch, and three
@pytest.mark.parametrize("log_every", [1, 9])
def test_rate_that_grows_too_large_keeps_the_last_good_checkpoint(
    deepclust, tmp_path, tiny, n, log_every
):
    run = tmp_path / "out"
    options = ["--data", "digits", "--limit", n, "--epochs", 6, "--out", run, *tiny]
    grows = ["--set", "drops=((0.3, 1e38),)", "--set", f"log_every={log_every}"]
    done = deepclust("train", "mmdc", *options, *grows)
    assert done.code == 2 and "not finite" in done.last, done.crash or done.last
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    assert 1 <= state["epoch"] < 6
    assert all(v.isfinite().all() for v in state["method"].values())
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == state["epoch"]
    assert all("NaN" not in line and "Infinity" not in line for line in lines)
    for table in run.glob("assignments.csv"):
        assert "nan" not in table.read_text(encoding="utf-8")
    assert "NaN" not in deepclust("evaluate", run, "--data", "digits").out


# The real command


def test_the_installed_command_refuses_in_one_line(shell, tmp_path, listing):
    (tmp_path / "data").mkdir()
    done = shell("train", "mmdc", "--data", "data", "--k", 2, "--out", "out", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"deepclust: data: no image found [^\n]+\n", done.err)
    assert list(listing(tmp_path)) == ["data"]


def test_json_results_are_valid(photo_run):
    def strict(name):
        raise AssertionError(f"{name} is not JSON")

    for file in photo_run.glob("*.json"):
        json.loads(file.read_text(encoding="utf-8"), parse_constant=strict)
    assert zipfile.is_zipfile(photo_run / "checkpoint.pt")
