"""`deepclust refine`: edits of the gallery applied, hostile files refused in one line, the run left alone."""

import csv
import json
import re

import pytest

from deepclust_nb.gallery import fingerprint_of
from deepclust_nb.refine import FORMAT, VERSION, read_table


@pytest.fixture
def edits(tmp_path, photo_run):
    "Write edits that fit the run; what is given replaces a part of the file."
    names, assign, _ = read_table(photo_run / "assignments.csv")

    def write(*edits, **changed):
        told = {"format": FORMAT, "version": VERSION, "run": fingerprint_of(names, assign)}
        file = tmp_path / "edits.json"
        file.write_text(json.dumps(told | {"edits": edits} | changed), encoding="utf-8")
        return file

    return write


def rows(folder) -> dict[str, int]:
    "The cluster of each image."
    with open(folder / "assignments.csv", encoding="utf-8", newline="") as file:
        return {row["path_or_index"]: int(row["cluster"]) for row in csv.DictReader(file)}


def test_merge_and_drop_change_only_what_they_say(deepclust, photo_run, edits, tmp_path, listing):
    before, disk = rows(photo_run), listing(photo_run)
    cluster, first = before[list(before)[-1]], next(iter(before))
    into = (cluster + 1) % 4  # there, perhaps without an image
    file = edits(
        {"do": "merge", "cluster": cluster, "into": into},
        {"do": "drop", "image": 0},
    )
    done = deepclust("refine", photo_run, file, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    merged = {name: into if number == cluster else number for name, number in before.items()}
    assert rows(tmp_path / "out") == merged | {first: -1} and merged != before
    assert listing(photo_run) == disk
    assert "gallery" in done.out and (tmp_path / "out" / "gallery.html").is_file()
    trained, refined = (
        json.loads((d / "summary.json").read_text()) for d in (photo_run, tmp_path / "out")
    )
    assert refined["health"] == trained["health"]
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "Health of the run" in page
    assert all(one["name"] in page for one in trained["health"]["found"])


def test_without_out_it_lies_beside_the_run(deepclust, photo_run, edits):
    out = photo_run.with_name("run-refined")
    assert deepclust("refine", photo_run, edits({"do": "drop", "image": 2})).code == 0
    assert json.loads((out / "summary.json").read_text())["set_aside"] == 1
    again = deepclust("refine", photo_run, edits({"do": "drop", "image": 2}))
    assert again.code == 2 and "is there already" in again.last


HOSTILE = {
    "another run": {"run": "0" * 32},
    "a newer version": {"version": 2},
    "no format": {"format": "<script>"},
    "no list": {"edits": {"do": "drop"}},
    "too deep": {"edits": [[[[]]]]},
}
WRONG = [
    {"do": "__class__"},
    {"do": "must_be_there", "cluster": 0},
    {"do": "drop", "image": 10**30},
    {"do": "drop", "image": -1},
    {"do": "merge", "cluster": 0, "into": 99},
    {"do": "rename", "cluster": 0, "name": "\x1b]0;evil\x07"},
    {"do": "split", "cluster": 0, "parts": 10**9},
]


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_not_ours_is_refused(deepclust, photo_run, edits, tmp_path, what):
    file = edits({"do": "drop", "image": 0}, **HOSTILE[what])
    refused(deepclust("refine", photo_run, file, "--out", tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("edit", WRONG, ids=[edit["do"] for edit in WRONG])
def test_an_edit_that_cannot_be_is_refused(deepclust, photo_run, edits, tmp_path, edit):
    refused(deepclust("refine", photo_run, edits(edit), "--out", tmp_path / "out"), tmp_path)


def test_other_files_are_refused(deepclust, photo_run, tmp_path):
    for content in (
        b"",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"a": Infinity}',
        (photo_run / "checkpoint.pt").read_bytes(),
    ):
        (tmp_path / "edits.json").write_bytes(content)
        done = deepclust("refine", photo_run, tmp_path / "edits.json", "--out", tmp_path / "out")
        refused(done, tmp_path)


def refused(done, folder) -> None:
    "One line, and nothing written."
    assert done.code == 2 and not done.crash, done.err
    assert re.fullmatch(r"deepclust: [^\n\x1b]+\n", done.last)
    assert [p.name for p in folder.iterdir()] == ["edits.json"]


def test_a_split_by_the_run_and_folders_by_links(deepclust, photo_run, photos, edits, tmp_path):
    before = rows(photo_run)
    largest = max(set(before.values()), key=list(before.values()).count)
    file = edits(
        {"do": "split", "cluster": largest, "parts": 2},
        {"do": "rename", "cluster": largest, "name": "../../up"},
        {"do": "drop", "image": 0},
    )
    done = deepclust("refine", photo_run, file, "--out", tmp_path / "out", "--link")
    assert done.code == 0, done.err
    after, files = rows(tmp_path / "out"), list((tmp_path / "out" / "clusters").rglob("*.png"))
    assert {after[n] for n in after if before[n] == largest} - {-1} == {largest, 4}
    assert len(files) == 60 and all(f.samefile(photos / f.name) for f in files)
    names = {f.parent.name for f in files}
    assert (
        f"{largest:02d} up, part 1" in names and "04 up, part 2" in names and "no cluster" in names
    )
    assert not (tmp_path / "up").exists()


def test_a_set_that_is_no_files_has_no_folders(deepclust, tmp_path, tiny, digits):
    import numpy as np

    np.savez(tmp_path / "mine.npz", images=digits[:40])
    run = tmp_path / "run"
    options = ["--data", tmp_path / "mine.npz", "--k", 3, "--epochs", 2, "--out", run, *tiny]
    assert deepclust("train", "mmdc", *options).code == 0
    names, assign, _ = read_table(run / "assignments.csv")
    told = {"format": FORMAT, "version": VERSION, "run": fingerprint_of(names, assign)}
    file = tmp_path / "edits.json"
    file.write_text(json.dumps(told | {"edits": [{"do": "drop", "image": 39}]}))
    done = deepclust("refine", run, file, "--copy")
    assert done.code == 2 and "leave out --copy" in done.last
    assert deepclust("refine", run, file).code == 0
    (tmp_path / "mine.npz").unlink()
    done = deepclust("refine", run, file, "--out", tmp_path / "x")
    assert done.code == 2 and "mine.npz" in done.last and not (tmp_path / "x").exists()
