"A folder of pictures through the command line: clustered, corrected, sorted into folders; features written."

import csv
import json
import os

import numpy as np
import pytest
import torch

from conftest import DEVICE, crops
from deepclust_nb import data, photos
from deepclust_nb.core import DeepClustError, unit
from deepclust_nb.gallery import fingerprint_of
from deepclust_nb.howmany import how_many
from deepclust_nb.refine import FORMAT, VERSION

QUICK = ["--method", "instance", "--profile", "ci", "--epochs", 2, "--size", 16, "--device", DEVICE]
QUICK += ["--set", "width=4", "--set", "bs=16"]
FROZEN = {"method": "frozen", "profile": "ci", "size": 16, "settings": {"width": 4}}
FROZEN |= {"device": DEVICE}


@pytest.fixture(scope="module")
def holiday(tmp_path_factory):
    "Sixty pictures, one of them twice, one damaged, one with a name that would like to be a tag."
    folder = tmp_path_factory.mktemp("some") / "holiday"
    crops(folder, 60)
    (folder / "again.png").write_bytes((folder / "001.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff cut")
    os.replace(folder / "002.png", folder / "<img src=x onerror=alert(1)>.png")
    return folder


@pytest.fixture(scope="module")
def clustered(deepclust, holiday, tmp_path_factory):
    "What was said, and the run folder."
    out = tmp_path_factory.mktemp("out") / "run"
    done = deepclust("cluster", holiday, "--k", 3, "--copy", "--out", out, *QUICK)
    assert done.code == 0, done.err
    return done.out, out


def rows(run) -> dict[str, int]:
    with open(run / "assignments.csv", encoding="utf-8", newline="") as file:
        return {row["path_or_index"]: int(row["cluster"]) for row in csv.DictReader(file)}


def test_it_says_what_it_found_and_how_long_it_takes(clustered):
    said, out = clustered
    for words in ("62 images", "1 cannot be opened", "1 image has the pixels of another"):
        assert words in said
    assert "broken.jpg" in said and "; about " in said and "health: " in said
    assert str(out / "gallery.html") in said and f"deepclust predict {out}" in said


def test_every_image_is_in_the_folder_of_its_cluster(clustered):
    _, out = clustered
    table = rows(out)
    inside = {p.name: p.parent.name for p in (out / "clusters").rglob("*") if p.is_file()}
    assert len(table) == 61 == len(inside)
    for name, cluster in table.items():
        assert inside[name] == f"cluster {cluster:02d}"


def test_a_name_is_no_tag(clustered):
    page = (clustered[1] / "gallery.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page


def test_the_page_has_map_outliers_and_health(clustered):
    page = (clustered[1] / "gallery.html").read_text(encoding="utf-8")
    summary = json.loads((clustered[1] / "summary.json").read_text())
    assert "Health" in page and "<circle" in page and "utlier" in page
    assert all(one["name"] in page for one in summary["health"]["found"])


def test_what_was_corrected_is_applied(deepclust, clustered, tmp_path):
    _, out = clustered
    table = rows(out)
    names, assign = list(table), np.array(list(table.values()))
    edits = {"format": FORMAT, "version": VERSION, "run": fingerprint_of(names, assign)}
    edits["edits"] = [{"do": "merge", "cluster": 1, "into": 0}]
    (tmp_path / "edits.json").write_text(json.dumps(edits))
    done = deepclust("refine", out, tmp_path / "edits.json", "--out", tmp_path / "better")
    assert done.code == 0, done.err
    after = rows(tmp_path / "better")
    assert all(after[n] == (0 if c == 1 else c) for n, c in table.items())


def test_a_taken_folder_is_refused_before_any_work(deepclust, holiday, clustered):
    done = deepclust("cluster", holiday, "--k", 3, "--out", clustered[1], *QUICK)
    assert done.code == 2 and "--overwrite" in done.last and "epoch" not in done.out


def asked_so(monkeypatch, rows) -> None:
    "What the network of `howmany` sees, in its place; it is tried elsewhere."
    monkeypatch.setattr(photos, "asked_for", lambda plan, progress, say: how_many(rows))


def groups(centres: int) -> torch.Tensor:
    "A row for each of the 61 pictures, around a few centres."
    g = torch.Generator().manual_seed(0)
    middle = 5 * torch.eye(8)[torch.arange(61) % centres]
    return unit(middle + 0.2 * torch.randn(len(middle), 8, generator=g))


def test_without_k_it_is_asked_how_many(monkeypatch, holiday, tmp_path):
    asked_so(monkeypatch, groups(4))
    said = []
    found = photos.cluster(holiday, tmp_path / "run", say=said.append, progress=False, **FROZEN)
    told = json.loads((tmp_path / "run" / "howmany.json").read_text())
    assert told["low"] <= found["k"] <= told["high"] and found["k"] in (3, 4, 5)
    assert any(line.startswith("how many clusters: ") for line in said)
    assert (tmp_path / "run" / "howmany.png").exists()


def test_pictures_without_groups_are_not_clustered_unasked(monkeypatch, holiday, tmp_path):
    g = torch.Generator().manual_seed(0)
    asked_so(monkeypatch, unit(torch.randn(300, 8, generator=g)))
    with pytest.raises(DeepClustError, match="I cannot tell.*--k"):
        photos.cluster(holiday, tmp_path / "run", say=str, progress=False, **FROZEN)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_more_pictures_than_memory(monkeypatch, holiday, tmp_path):
    monkeypatch.setattr(data, "free_memory", lambda: 1000.0)
    said = []
    found = photos.cluster(
        holiday, tmp_path / "run", k=3, say=said.append, progress=False, **FROZEN
    )
    assert found["n"] == 61 and "1 image has the pixels of another, 0 more" in "\n".join(said)


def test_a_frozen_network_may_be_asked_for_epochs(holiday, tmp_path):
    asked = FROZEN | {"epochs": 3, "k": 3, "progress": False}
    assert photos.cluster(holiday, tmp_path / "run", say=str, **asked)["epochs"] == 3


def test_a_part_of_a_folder_is_corrected(deepclust, holiday, tmp_path):
    "The damaged file is among those that are drawn, and missing."
    limit = ["--limit", 61, "--out", tmp_path / "run", *QUICK]
    assert deepclust("cluster", holiday, "--k", 3, *limit).code == 0
    table = rows(tmp_path / "run")
    run = fingerprint_of(list(table), np.array(list(table.values())))
    edits = {"format": FORMAT, "version": VERSION, "run": run}
    edits["edits"] = [{"do": "drop", "image": 0}]
    (tmp_path / "edits.json").write_text(json.dumps(edits))
    done = deepclust("refine", tmp_path / "run", tmp_path / "edits.json")
    assert done.code == 0, done.err


def test_it_is_taken_up(deepclust, holiday, clustered):
    "A folder of clusters that is there stays, and nothing is trained twice."
    done = deepclust("cluster", holiday, "--k", 3, "--resume", "--out", clustered[1], *QUICK)
    assert done.code == 0 and "Epoch" not in done.err, done.err
    other = deepclust("cluster", holiday, "--k", 4, "--resume", "--out", clustered[1], *QUICK)
    assert other.code == 2 and "k was 3, now 4" in other.last


@pytest.mark.parametrize("wrong", [["--weights", "nowhere.pth"], ["--method", "nonsense"]])
def test_wrong_words_make_one_line(deepclust, holiday, tmp_path, wrong):
    done = deepclust("cluster", holiday, "--k", 2, *wrong, "--out", tmp_path / "run")
    assert done.code == 2 and not done.crash and done.last.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_features_of_a_run_are_written(deepclust, holiday, clustered, tmp_path):
    done = deepclust("embed", holiday, tmp_path / "h.npz", "--weights", clustered[1])
    assert done.code == 0, done.err
    stored = np.load(tmp_path / "h.npz", allow_pickle=False)
    assert stored["features"].shape[0] == 61 == len(stored["names"])
    assert list(stored["names"]) == list(rows(clustered[1]))
    again = deepclust("embed", holiday, tmp_path / "h.txt", "--weights", clustered[1])
    assert again.code == 2 and ".npz" in again.last
    assert deepclust("embed", holiday, tmp_path / "h.npz").code == 2
