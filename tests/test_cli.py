"""The `deepclust` command: what each part prints, and what a run leaves behind."""

import base64
import csv
import json
import math
import re

import pytest
import torch

FILES = "config.json metrics.jsonl summary.json checkpoint.pt assignments.csv gallery.html".split()
FIGURES = "clusters.png sizes.png curves.png maps.png".split()
SUMMARY = set(
    "method data split n k seed epochs acc nmi ari baseline seconds images_per_second peak_memory_mb"
    " device processes joint_norms threads versions".split()
)
OPTIONS = {
    "train": "--data --k --profile --epochs --stop-after --seed --seeds --size --backbone --device"
    " --data-root --split --out --resume --overwrite --init --set --limit --precision --channels-last --compile",
    "evaluate": "--data --split --probe --linear --linear-epochs --device --data-root",
    "predict": "--out --device",
    "methods": "--data --profile --data-root",
    "data": "--size --data-root",
    "check": "METHOD FILE.py:NAME --device --set",
    "bench": "--backbone --width --side --bs --times --json --device --set --precision --compile",
    "export": "RUN FILE.pt",
    "refine": "RUN EDITS.json --out --copy --link --data --data-root --device",
    "cluster": "FOLDER --k --method --weights --backbone --size --profile --epochs --seed --limit --out"
    " --overwrite --copy --link --device --data-root --set",
    "embed": "FOLDER FILE.npz --weights --backbone --size --device --data-root",
    "howmany": "--max --method --profile --size --limit --seed --device --data-root --out",
}


def table(text: str) -> list[dict]:
    "The rows of an assignment table, whose header must be the promised one."
    rows = csv.DictReader(text.splitlines())
    assert rows.fieldnames == ["path_or_index", "cluster", "confidence"]
    return list(rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shell, tiny):
    "200 digits for three epochs, by the installed command: what it said, and the run folder."
    out = tmp_path_factory.mktemp("digits") / "run"
    said = shell(
        *("train", "mmdc", "--data", "digits", "--limit", 200, "--epochs", 3, "--out", out), *tiny
    )
    return said, out


def read(run, name: str):
    "A JSON file of a run."
    return json.loads((run / name).read_text(encoding="utf-8"))


# train


def test_train_leaves_every_promised_file(trained):
    said, run = trained
    assert said.code == 0, said.err
    missing = [n for n in FILES + FIGURES + ["confusion.png"] if not (run / n).stat().st_size]
    assert not missing
    assert not list(run.glob("*.part"))


def test_train_says_what_will_happen_and_what_came_out(trained):
    said, run = trained
    assert "200 images (1, 8, 8) into 10 clusters" in said.out
    assert re.search(r"about \d+ s and [\d.]+ GB", said.out)
    assert said.out.index("about") < said.out.index("k-means on pixels")
    assert re.search(r"^MMDC +0\.\d{3}  0\.\d{3}  -?0\.\d{3}$", said.out, re.M)
    assert str(run) in said.out
    assert "Traceback" not in said.err


def test_config_holds_what_was_asked(trained):
    config = read(trained[1], "config.json")
    assert (config["method"], config["k"], config["seed"]) == ("mmdc", 10, 0)
    assert config["recipe"]["width"] == 4
    assert config["data"]["n"] == 200


def test_metrics_have_one_line_an_epoch(trained):
    lines = (trained[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert [line["stage"] for line in epochs] == ["main", "main", "refine"]
    assert all(math.isfinite(line["train.loss"]) and 0 <= line["acc"] <= 1 for line in epochs)


def test_summary_has_every_key(trained):
    summary = read(trained[1], "summary.json")
    assert not SUMMARY - summary.keys()
    assert {"acc", "nmi", "ari"} <= summary["baseline"].keys()
    assert (summary["n"], summary["k"], summary["epochs"]) == (200, 10, 3)
    assert summary["seconds"] > 0 and summary["images_per_second"] > 0
    assert summary["peak_memory_mb"] > 0 and torch.__version__.startswith(
        summary["versions"]["torch"]
    )


def test_summary_agrees_with_the_last_metrics_line(trained):
    line = (trained[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    summary, last = read(trained[1], "summary.json"), json.loads(line)
    for name in ("acc", "nmi", "ari"):
        assert summary[name] == pytest.approx(last[name], abs=1e-4)


def test_checkpoint_loads_without_running_code(trained):
    state = torch.load(trained[1] / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 3 and state["finished"]
    assert all(v.isfinite().all() for v in state["method"].values())


def test_assignments_name_every_image(trained):
    rows = table((trained[1] / "assignments.csv").read_text(encoding="utf-8"))
    assert [row["path_or_index"] for row in rows] == [str(i) for i in range(200)]
    assert {int(row["cluster"]) for row in rows} <= set(range(10))
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)


def test_gallery_needs_no_network(trained):
    page = (trained[1] / "gallery.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    first = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    assert base64.b64decode(first).startswith(b"\x89PNG")
    assert page.count('id="cluster-') == 10


def test_figures_are_pictures(trained):
    from PIL import Image

    for name in FIGURES + ["confusion.png"]:
        with Image.open(trained[1] / name) as figure:
            assert min(figure.size) > 100 and len(figure.convert("L").getcolors(256)) > 10


def test_without_labels_accuracies_are_null(photo_run):
    summary = read(photo_run, "summary.json")
    assert not SUMMARY - summary.keys()
    assert [summary[name] for name in ("acc", "nmi", "ari")] == [None] * 3
    assert [summary["baseline"][name] for name in ("acc", "nmi", "ari")] == [None] * 3
    assert summary["clusters_used"] >= 1


def test_number_of_clusters_may_differ_from_number_of_classes(deepclust, tmp_path, tiny):
    for k in (2, 13):
        options = ["--data", "digits", "--limit", 100, "--epochs", 2, "--out", tmp_path / str(k)]
        done = deepclust("train", "mmdc", *options, "--k", k, *tiny)
        assert done.code == 0, done.err
        assert read(tmp_path / str(k), "summary.json")["k"] == k


def test_sub_folders_are_classes(deepclust, pictures, tmp_path, tiny):
    pictures(tmp_path / "data" / "a", 10)
    pictures(tmp_path / "data" / "b", 10, first=10)
    options = ["--data", tmp_path / "data", "--epochs", 2, "--out", tmp_path / "run"]
    done = deepclust("train", "mmdc", *options, *tiny)
    assert done.code == 0, done.err
    assert read(tmp_path / "run", "summary.json")["k"] == 2
    assert read(tmp_path / "run", "summary.json")["acc"] >= 0.5


def test_npz_without_labels(deepclust, digits, tmp_path, tiny):
    import numpy as np

    np.savez(tmp_path / "mine.npz", images=digits[:40])
    options = ["--data", tmp_path / "mine.npz", "--k", 3, "--epochs", 2, "--out", tmp_path / "run"]
    done = deepclust("train", "mmdc", *options, *tiny)
    assert done.code == 0, done.err
    assert read(tmp_path / "run", "summary.json")["acc"] is None


def test_seeds_give_median_and_spread(deepclust, tmp_path, tiny):
    options = ["--data", "digits", "--limit", 100, "--epochs", 2, "--out", tmp_path / "runs"]
    done = deepclust("train", "mmdc", *options, "--seeds", "0,1", *tiny)
    assert done.code == 0, done.err
    runs = [read(tmp_path / "runs" / f"seed{seed}", "summary.json") for seed in (0, 1)]
    assert [run["seed"] for run in runs] == [0, 1]
    low, high = sorted(run["acc"] for run in runs)
    printed = re.search(r"^ +acc +([\d.]+) \(([\d.]+) to ([\d.]+)\)$", done.out, re.M)
    expected = ((low + high) / 2, low, high)
    assert [float(v) for v in printed.groups()] == pytest.approx(expected, abs=1e-3)


def test_same_seed_same_run_other_seed_other_run(deepclust, tmp_path, tiny):
    tables = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ["--data", "digits", "--limit", 100, "--epochs", 2, "--out", tmp_path / name]
        assert deepclust("train", "mmdc", *options, "--seed", seed, *tiny).code == 0
        tables.append((tmp_path / name / "assignments.csv").read_text(encoding="utf-8"))
    assert tables[0] == tables[1] != tables[2]


def test_init_by_a_method_trains_it_first(deepclust, tmp_path, tiny):
    options = ["--data", "digits", "--limit", 100, "--epochs", 2, "--out", tmp_path / "run"]
    done = deepclust("train", "mmdc", *options, "--init", "rotnet", *tiny)
    assert done.code == 0, done.err
    assert read(tmp_path / "run", "config.json")["recipe"]["init"] == "rotnet"
    assert read(tmp_path / "run" / "init", "config.json")["method"] == "rotnet"
    start = read(tmp_path / "run", "summary.json")["start"]
    assert start["from"] == "rotnet" and start["seconds"] > 0 and 0.1 < start["acc"] < 1
    assert "k-means on the start (rotnet)" in done.out


def test_a_recipe_names_its_start_and_random_overrides_it(deepclust, tmp_path, tiny):
    options = ["--data", "digits", "--limit", 100, "--epochs", 1, "--profile", "ci"]
    options += ["--set", "width=4"]
    for name, start, method in (("own", [], "instance"), ("plain", ["--init", "random"], None)):
        done = deepclust("train", "lsdc", *options, "--out", tmp_path / name, *start)
        assert done.code == 0, done.err
        init = tmp_path / name / "init"
        assert (read(init, "config.json")["method"] if init.exists() else None) == method
        assert (read(tmp_path / name, "summary.json")["start"] is None) == (method is None)


def test_init_by_a_folder_changes_the_start(deepclust, trained, tmp_path, tiny):
    options = ["--data", "digits", "--limit", 100, "--epochs", 2, "--set", "lr=1e-9", "--seed", 5]
    for name, start in (("own", []), ("init", ["--init", trained[1]])):
        done = deepclust("train", "mmdc", *options, *tiny, "--out", tmp_path / name, *start)
        assert done.code == 0, done.err
    own, init, source = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["method"]["net.0.0.weight"]
        for folder in (tmp_path / "own", tmp_path / "init", trained[1])
    )
    torch.testing.assert_close(init, source, atol=1e-5, rtol=0)
    assert (own - source).abs().max() > 1e-2


def test_all_methods_train(deepclust, tmp_path, tiny):
    from deepclust_nb.train import METHODS

    for method in METHODS:
        options = ["--data", "digits", "--limit", 60, "--epochs", 2, "--out", tmp_path / method]
        done = deepclust("train", method, *options, *tiny)
        assert done.code == 0, f"{method}: {done.err}"


# evaluate and predict


def test_evaluate_gives_the_figures_of_the_summary(deepclust, trained):
    done = deepclust("evaluate", trained[1])
    assert done.code == 0, done.err
    found, summary = json.loads(done.out), read(trained[1], "summary.json")
    for name in ("acc", "nmi", "ari", "clusters_used"):
        assert found[name] == pytest.approx(summary[name], abs=1e-4), name


def test_evaluate_on_other_images_with_a_probe(deepclust, trained):
    done = deepclust("evaluate", trained[1], "--data", "digits", "--probe")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["features_linear_acc"] > 0.5
    assert {"features_kmeans_acc", "features_kmeans_nmi", "features_kmeans_ari"} <= found.keys()


def test_a_linear_classifier_learns_from_one_part_and_is_tested_on_another(deepclust, trained):
    said, run = trained
    before = (run / "checkpoint.pt").read_bytes()
    done = deepclust("evaluate", run, "--linear", "--linear-epochs", 3)
    assert done.code == 0, done.crash or done.err
    found = json.loads(done.out)
    assert (found["linear_train"], found["linear_test"]) == (90, 100)  # a tenth chose the rate
    assert found["linear_acc"] in found["linear_each_rate"].values()
    assert found["acc"] == pytest.approx(read(run, "summary.json")["acc"], abs=1e-4)
    again = deepclust("evaluate", run, "--linear", "--linear-epochs", 3)
    assert json.loads(again.out) == found and (run / "linear" / "checkpoint.pt").exists()
    assert (run / "checkpoint.pt").read_bytes() == before


def test_a_linear_classifier_needs_labels(deepclust, photo_run):
    done = deepclust("evaluate", photo_run, "--linear")
    assert done.code == 2 and "linear" in done.last and "labels" in done.last


def test_evaluate_without_labels_gives_what_needs_none(deepclust, photo_run):
    done = deepclust("evaluate", photo_run)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert "acc" not in found or found["acc"] is None
    assert 0 <= found["mass_entropy"] <= 1


def test_predict_repeats_the_stored_assignments(shell, photo_run, photos):
    stored = table((photo_run / "assignments.csv").read_text(encoding="utf-8"))
    done = shell("predict", photo_run, *(photos / row["path_or_index"] for row in stored))
    assert done.code == 0, done.err
    found = table(done.out)
    assert [row["cluster"] for row in found] == [row["cluster"] for row in stored]
    for a, b in zip(found, stored):
        assert a["path_or_index"] == str(photos / b["path_or_index"])
        assert float(a["confidence"]) == pytest.approx(float(b["confidence"]), abs=1e-4)


def test_predict_takes_folders_and_single_files_in_any_order(deepclust, photo_run, photos):
    stored = table((photo_run / "assignments.csv").read_text(encoding="utf-8"))
    whole = table(deepclust("predict", photo_run, photos).out)
    assert [row["cluster"] for row in whole] == [row["cluster"] for row in stored]
    some = [stored[7], stored[2]]
    found = table(
        deepclust("predict", photo_run, *(photos / row["path_or_index"] for row in some)).out
    )
    assert [row["cluster"] for row in found] == [row["cluster"] for row in some]


def test_predict_writes_a_table(deepclust, photo_run, photos, tmp_path):
    done = deepclust("predict", photo_run, photos, "--out", tmp_path / "where.csv")
    assert done.code == 0, done.err
    assert len(table((tmp_path / "where.csv").read_text(encoding="utf-8"))) == 60


def test_predict_brings_mixed_images_to_the_shape_of_the_run(deepclust, tmp_path, tiny, digits):
    from PIL import Image

    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(24):
        mode, side = ("L", "RGB", "RGBA")[i % 3], (16, 20, 27)[i % 3]
        picture = Image.fromarray(digits[i]).resize((side, side + i % 2)).convert(mode)
        picture.save(folder / f"{i:02d}.png")
    options = ["--data", folder, "--size", 12, "--k", 3, "--epochs", 2, "--out", tmp_path / "run"]
    assert deepclust("train", "mmdc", *options, *tiny).code == 0
    stored = table((tmp_path / "run" / "assignments.csv").read_text(encoding="utf-8"))
    found = table(deepclust("predict", tmp_path / "run", folder).out)
    assert [row["cluster"] for row in found] == [row["cluster"] for row in stored]
    grey = table(deepclust("predict", tmp_path / "run", folder / "00.png").out)  # grey alone
    assert [row["cluster"] for row in grey] == [stored[0]["cluster"]]


# methods, data, bench, help


def test_methods_are_listed_with_their_settings(deepclust):
    from deepclust_nb.train import METHODS

    names = [line.split()[0] for line in deepclust("methods").out.splitlines()]
    assert names == list(METHODS)
    shown = deepclust("methods", "mmdc", "--profile", "ci")
    assert shown.code == 0
    assert re.search(r"^  lr=0\.05 +learning rate$", shown.out, re.M)


def test_methods_show_the_recipe_of_a_profile(deepclust):
    paper = deepclust("methods", "mmdc", "--data", "digits", "--profile", "full").out
    assert "main_epochs=60" in paper


def test_data_lists_what_is_built_in(deepclust):
    done = deepclust("data")
    assert done.code == 0
    for name in ("digits", "mnist", "fashion-mnist", "cifar10", "imagenet-dogs", ".npz"):
        assert name in done.out
    assert re.search(r"^ +digits +1,797 images", done.out, re.M)


def test_data_looks_at_a_folder(deepclust, photos):
    done = deepclust("data", photos)
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert "60 images (1, 8, 8), no labels" in done.out


def test_data_looks_at_a_built_in_set(deepclust):
    done = deepclust("data", "digits", "--size", 16)
    assert "1,797 images, as published" in done.out and "0.5 MB at 16 px" in done.out


BENCH = set(  # what a record of a measurement holds
    "method backbone width bs side input accumulate precision channels_last compile device threads"
    " torch views step bare flop ratio images_per_second views_per_second tflops memory_mb".split()
)


def test_bench_gives_json(deepclust, device):
    small = "--times 1 --width 4 --side 16 --bs 16 --device".split()
    done = deepclust("bench", "mmdc", *small, device, "--json", "--precision", "bf16")
    assert done.code == 0, done.err
    (parts,) = json.loads(done.out)
    assert parts.keys() >= BENCH | {"loss and state", "train ratio"}
    assert parts["ratio"] == pytest.approx(parts["step"] / parts["bare"])
    assert parts["images_per_second"] == pytest.approx(16 / parts["step"])
    assert parts["views_per_second"] == pytest.approx(32 / parts["step"])  # plain and augmented
    assert parts["tflops"] == pytest.approx(parts["flop"] / parts["step"] / 1e12)
    assert (parts["precision"], parts["compile"]) == ("bf16", False)


def test_bench_measures_several_methods_and_backbones(deepclust, device):
    small = "--times 1 --width 4 --side 16 --bs 16 --backbone small_cnn --device".split()
    done = deepclust("bench", "mmdc", "rotnet", *small, device, "--backbone", "vgg4")
    assert done.code == 0, done.err
    head, columns, *rows = done.out.splitlines()
    assert "bs=16" in head and "step / bare" in columns and "images/s" in columns
    names = [tuple(row.split()[:2]) for row in rows]
    assert names == [(m, b) for m in ("mmdc", "rotnet") for b in ("small_cnn", "vgg4")]


def test_bench_of_all_methods(deepclust, device):
    from learning import LEARNING

    small = "--times 1 --width 2 --side 8 --bs 8 --backbone small_cnn --device".split()
    done = deepclust("bench", "all", *small, device, "--json")
    assert done.code == 0, done.err
    assert [record["method"] for record in json.loads(done.out)] == LEARNING


@pytest.mark.parametrize("command", OPTIONS)
def test_help_mentions_every_option(deepclust, command):
    done = deepclust(command, "--help")
    assert (done.code, done.err) == (0, "")
    missing = [o for o in OPTIONS[command].split() if not re.search(rf"{o}\b", done.out)]
    assert not missing


def test_help_explains_every_option(deepclust):
    import click

    from deepclust_nb.cli import cli

    for name, command in cli.commands.items():
        assert command.help, name
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.name}"


def test_help_of_the_whole_is_short(deepclust):
    done = deepclust("--help")
    assert done.code == 0
    assert all(f"\n  {command} " in done.out for command in OPTIONS)


def test_no_command_shows_the_help_on_several_lines(deepclust):
    done = deepclust()
    assert (done.out + done.err).count("\n") > 10


def test_version(deepclust):
    import deepclust_nb

    assert deepclust("--version").out.strip().endswith(deepclust_nb.__version__)
