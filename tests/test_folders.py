"""Folders as people have them: every size and kind of image, odd names, links in circles, traps, and very many files."""

import contextlib
import csv
import io
import os
import re
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from conftest import DEVICE
from deepclust_nb.cli import main
from deepclust_nb.core import DeepClustError
from deepclust_nb.data import load_files, load_folder
from deepclust_nb.duplicates import near_codes, near_duplicates
from deepclust_nb.estimator import DeepCluster
from deepclust_nb.named import find_images


def only_linux(reason: str):
    return pytest.mark.skipif(os.name == "nt", reason=reason)


@pytest.fixture
def folder(tmp_path, pictures):
    "Six good digits; tests add what is odd."
    return pictures(tmp_path / "data", 6)


def reasons(data) -> dict[str, str]:
    "Why files were skipped."
    return dict(data.skipped)


# Sizes


def test_very_different_sizes(folder):
    rng = np.random.default_rng(0)
    sizes = {"pixel": (1, 1), "line": (1, 500), "column": (700, 2), "large": (3000, 2000)}
    for name, size in sizes.items():
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / f"{name}.png")
    data = load_folder(folder)
    assert len(data) == 10 and not data.skipped and data.shape == (1, 8, 8)
    assert any("only the middle square is seen" in note for note in data.notes)


def test_a_panorama_shows_its_middle(folder):
    wide = Image.new("RGB", (900, 30), "red")
    wide.paste("blue", (435, 0, 465, 30))
    wide.save(folder / "panorama.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(folder / "tower.png")
    data = load_folder(folder, 30)
    for name in ("panorama.png", "tower.png"):
        assert (data.x[data.paths.index(name)].amax((1, 2)).tolist()) == [0, 0, 255]
    assert "2 of 8 images: more than 3 times as long as wide" in " ".join(data.notes)


def test_grey_and_colour(folder):
    Image.new("RGB", (8, 8), (200, 10, 10)).save(folder / "red.png")
    data = load_folder(folder)
    assert data.shape == (3, 8, 8) and "6 of 7 images: grey among colour" in " ".join(data.notes)
    assert (data.x[0, 0] == data.x[0, 2]).all()
    assert load_files([folder], (1, 8, 8)).shape == (1, 8, 8)


# Kinds of files


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, tag):
    "Stored as a camera would store it, read as it was seen."
    seen = np.zeros((16, 16), np.uint8)
    seen[:4], seen[:8, :6] = 120, 250
    turned = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.T,
        6: np.rot90(seen),
        7: seen[::-1, ::-1].T,
        8: np.rot90(seen, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = tag
    for i in range(2):
        picture = Image.fromarray(np.ascontiguousarray(turned[tag]))
        picture.save(tmp_path / f"{i}.png", exif=exif)
    data = load_folder(tmp_path)
    assert np.array_equal(data.x[0, 0].numpy(), seen)
    assert any("EXIF" in note for note in data.notes) == (tag > 1)


def test_animated_files_give_their_first_frame(folder):
    frames = [Image.new("L", (8, 8), level) for level in (10, 90, 200)]
    for name in ("a.gif", "b.png", "c.tiff", "d.webp"):
        more = {"lossless": True} if name == "d.webp" else {}
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], **more)
    data = load_folder(folder)
    places = [data.paths.index(name) for name in ("a.gif", "b.png", "c.tiff", "d.webp")]
    assert (data.x[places] == 10).all()
    assert "4 of 10 images: animated or several pages" in " ".join(data.notes)


def test_cut_off_files_are_listed(folder):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
    for ending in ("jpg", "png", "gif", "bmp", "tiff", "webp"):
        whole = folder / f"whole.{ending}"
        noise.save(whole)
        content = whole.read_bytes()
        for share in (0, 0.02, 0.6):
            (folder / f"cut{share}.{ending}").write_bytes(content[: int(share * len(content))])
    data = load_folder(folder, 8)
    assert len(data) == 12 and len(data.skipped) == 18
    assert all(why and "\n" not in why for why in reasons(data).values())


def test_files_that_are_something_else(folder):
    (folder / "text.png").write_text("no image at all")
    (folder / "page.jpg").write_text("<html></html>")
    (folder / "folder.png").mkdir()
    data = load_folder(folder)
    assert len(data) == 6 and reasons(data) == dict.fromkeys(
        ["page.jpg", "text.png"], "not an image"
    )


# Traps


def png_of(width: int, height: int, content: bytes) -> bytes:
    "A grey PNG file with a header that may lie."

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_listed_and_never_decoded(folder, monkeypatch):
    decoded, load = [], ImageFile.ImageFile.load
    watched = lambda im: (decoded.append(im.size), load(im))[1]
    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    for name, side in {"bomb": 60_000, "half": 10_000}.items():
        (folder / f"{name}.png").write_bytes(png_of(side, side, bytes(10**6)))
    data = load_folder(folder)
    assert len(data) == 6 and set(reasons(data)) == {"bomb.png", "half.png"}
    assert all("pixels" in why for why in reasons(data).values())
    assert "100,000,000 pixels" in reasons(data)["half.png"]
    assert max(width for width, _ in decoded) == 8


def test_a_bomb_in_the_text_of_a_file_is_listed(folder):
    info = PngInfo()
    info.add_text("Comment", "x" * 10**8, zip=True)
    Image.new("L", (8, 8)).save(folder / "text.png", pnginfo=info)
    data = load_folder(folder)
    assert len(data) in (6, 7)  # by version of Pillow; never a crash
    assert set(reasons(data)) <= {"text.png"}


@only_linux("links need rights there")
def test_links_in_circles(folder):
    (folder / "sub").mkdir()
    os.rename(folder / "digit005.png", folder / "sub" / "digit005.png")
    (folder / "self").symlink_to(folder, target_is_directory=True)
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "sub" / "round").symlink_to(folder / "sub" / "round")
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "twin.png").symlink_to(folder / "digit000.png")
    data = load_folder(folder)
    assert len(data) == 7 and set(reasons(data)) == {"loop.png", "gone.png"}
    assert near_duplicates(data.x, 0).exact.tolist().count(0) == 2  # the twin


@only_linux("links need rights there")
def test_a_linked_folder_is_read_once(folder, tmp_path, pictures):
    other = pictures(tmp_path / "other", 3, first=10)
    for name in ("here", "there"):
        (folder / name).symlink_to(other, target_is_directory=True)
    assert len(find_images(folder)[0]) == 9


@only_linux("there is no such thing")
def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    found = []
    reader = threading.Thread(target=lambda: found.append(load_folder(folder)), daemon=True)
    reader.start()
    reader.join(60)
    assert found and len(found[0]) == 6


# Names


SCRIPTS = [
    "été.png",
    "猫.png",
    "кот.png",
    "قطة.png",
    "חתול.png",
    "แมว.png",
    "🐈.png",
    "e\u0301.png",
]
SCRIPTS += ["-rf.png", "'; drop.png", "a b.png", "%s%n.png", "${HOME}.png", "x" * 200 + ".png"]


def clustered(deepclust, data, out, tiny):
    "A small run of the command line on a folder."
    options = ["--data", data, "--k", 2, "--epochs", 2, "--out", out]
    done = deepclust("train", "mmdc", *options, *tiny)
    assert done.code == 0, done.crash or done.last
    return done


def test_names_in_any_script(deepclust, tmp_path, pictures, tiny, no_figures):
    folder = pictures(tmp_path / "data", len(SCRIPTS))
    for old, new in zip(sorted(folder.iterdir()), SCRIPTS):
        old.rename(folder / new)
    clustered(deepclust, folder, tmp_path / "out", tiny)
    with open(tmp_path / "out" / "assignments.csv", encoding="utf-8", newline="") as file:
        names = [row["path_or_index"] for row in csv.DictReader(file)]
    assert sorted(names) == sorted(os.listdir(folder))
    assert len(names) == len(set(names)) == len(SCRIPTS)


@pytest.fixture
def undecodable(folder):
    "A folder in which one good file and one broken one have names that are no text."
    if os.name == "nt":
        pytest.skip("file names are text there")
    try:
        os.rename(folder / "digit000.png", os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes only text")
    with open(os.fsencode(folder) + b"/broken\xff.png", "wb") as file:
        file.write(b"no image")
    return folder


def test_names_that_are_no_text_are_kept_byte_for_byte(
    deepclust, undecodable, tmp_path, tiny, no_figures
):
    clustered(deepclust, undecodable, tmp_path / "out", tiny)
    table = (tmp_path / "out" / "assignments.csv").read_bytes()
    assert b"\ncaf\xe9.png," in table and b"broken" not in table
    (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")


def strictly(*args) -> tuple[int, str, str]:
    "The command with streams that take only text, as a terminal's may be."
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code or 0
    out.flush(), err.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def test_names_that_are_no_text_are_said_escaped(undecodable, tmp_path, tiny, no_figures):
    options = ["--data", undecodable, "--k", 2, "--epochs", 2, "--out", tmp_path / "out"]
    code, said, wrong = strictly("train", "mmdc", *options, *tiny)
    assert code == 0, wrong
    assert r"skipped broken\udcff.png: not an image" in said
    code, table, said = strictly("predict", tmp_path / "out", undecodable, "--device", DEVICE)
    assert code == 0 and "broken" in said, said
    assert len(table.splitlines()) == 7 and r"caf\udce9.png" in table


def test_a_folder_of_only_bad_names_is_refused_in_one_line(undecodable, tmp_path, tiny):
    for file in list(undecodable.iterdir()):
        if "broken" not in file.name:
            file.unlink()
    options = ["--data", undecodable, "--k", 2, "--out", tmp_path / "out"]
    code, _, said = strictly("train", "mmdc", *options, *tiny)
    assert code == 2 and re.fullmatch(r"deepclust: .*none of 1 images.*udcff.*\n", said), said
    assert not (tmp_path / "out").exists()


def test_the_estimator_says_bad_names_too(undecodable):
    with pytest.warns(UserWarning, match=r"broken.udcff.png"):
        small = {"profile": "ci", "epochs": 1, "settings": {"width": 4}, "device": DEVICE}
        model = DeepCluster("byol", 2, **small, progress=False).fit(undecodable)
    places = dict(zip(model.names_, model.labels_.tolist()))
    assert places["broken\udcff.png"] == -1 and places["caf\udce9.png"] >= 0


# Many files


def linked(folder, n: int, seed) -> None:
    "So many names of one file, in folders of 5,000."
    for i in range(n):
        if i % 5000 == 0:
            (folder / f"{i // 5000:03}").mkdir()
        os.link(seed, folder / f"{i // 5000:03}" / f"{i:06}.png")


@only_linux("no hard links everywhere")
def test_twenty_thousand_files_are_found_at_once(tmp_path, pictures):
    seed = pictures(tmp_path / "seed", 1) / "digit000.png"
    (tmp_path / "data").mkdir()
    linked(tmp_path / "data", 20_000, seed)
    begin = time.process_time()
    images, others = find_images(tmp_path / "data")
    assert len(images) == 20_000 and not others and images == sorted(images)
    assert time.process_time() - begin < 10


@only_linux("no hard links everywhere")
def test_thousands_of_equal_files(tmp_path, pictures):
    seed = pictures(tmp_path / "seed", 1) / "digit000.png"
    (tmp_path / "data").mkdir()
    linked(tmp_path / "data", 3000, seed)
    data = load_folder(tmp_path / "data", 8)
    assert len(data) == 3000 and not data.skipped
    found = near_duplicates(data.x)
    assert found.keep.sum() == 1 and not found.exact.any()


def test_many_codes_take_no_table_of_pairs():
    "20,000 codes have 4 * 10^8 pairs, 1.6 GB of distances; the distances at hand are never more than a block."
    stream = torch.Generator().manual_seed(0)
    codes = torch.rand(20_000, 128, generator=stream) < 0.5
    codes[10_000:] = codes[:10_000]
    codes[10_000:, 5] ^= True
    found = near_codes(codes, 4)
    assert (found[10_000:] == np.arange(10_000)).all() and (found[:10_000] == found[10_000:]).all()


def test_near_duplicates_refuses_nonsense(digits):
    with pytest.raises(DeepClustError, match="threshold"):
        near_duplicates(torch.from_numpy(digits)[:, None], -1)
