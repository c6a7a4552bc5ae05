"""What a run says of its own health: in the log, at the end, in the summary, on the page; and where a NaN began."""

import json
import math

import pytest
import torch

from deepclust_nb import engine, health, train
from deepclust_nb.core import unit
from deepclust_nb.gallery import write_gallery
from deepclust_nb.methods import byol, lsdc, mmdc, ncc, scl
from deepclust_nb.runs import RunFolder

FIGURES = "effective_rank isotropy smallest_angle agreement chance light largest_weight churn"


@pytest.fixture
def run_of(deepclust, tiny, tmp_path, no_figures):
    "Train some digits into `run`."

    def call(method, *more, out="run", limit=200):
        options = ["--data", "digits", "--limit", limit, "--out", tmp_path / out]
        return deepclust("train", method, *options, *tiny, *more)

    return call


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


# In a run folder


def test_every_look_has_the_figures(run_of, tmp_path):
    assert run_of("mmdc", "--epochs", 3).code == 0
    looks = RunFolder(tmp_path / "run").metrics()
    assert all(set(FIGURES.split()) <= look.keys() for look in looks)
    assert looks[0]["churn"] is None and 0 <= looks[1]["churn"] <= 1
    assert [look["step"] for look in looks] == sorted({look["step"] for look in looks})
    epochs = RunFolder(tmp_path / "run").epochs()
    moved = health.churn(epochs[3]["assign"], epochs[2]["assign"])
    assert looks[2]["churn"] == pytest.approx(moved)


def test_a_resumed_run_knows_the_look_before(run_of, tmp_path):
    assert run_of("mmdc", "--epochs", 3, out="whole").code == 0
    assert run_of("mmdc", "--epochs", 3, "--stop-after", 2).code == 0
    assert run_of("mmdc", "--epochs", 3, "--resume").code == 0
    one, other = (RunFolder(tmp_path / name).metrics() for name in ("whole", "run"))
    assert one == other
    assert summary(tmp_path / "run")["health"] == summary(tmp_path / "whole")["health"]


def test_a_collapse_is_said_while_it_happens_and_at_the_end(run_of, tmp_path):
    done = run_of("mmdc", "--epochs", 12, "--set", "rule=nearest_target")
    assert done.code == 0
    (warning,) = [line for line in done.out.splitlines() if line.startswith("warning in epoch")]
    assert "all images in one cluster" in warning and done.out.index(warning) < done.out.index(
        "ACC"
    )
    found = summary(tmp_path / "run")["health"]
    assert found["found"][1]["name"] == "all images in one cluster"  # after: too few steps
    assert all(line in done.out for line in found["says"])
    assert "--set rule=exchange" in "".join(found["says"])
    page = (tmp_path / "run" / "gallery.html").read_text(encoding="utf-8")
    assert "all images in one cluster" in page and 'id="health"' in page


def test_too_few_steps(run_of, tmp_path):
    assert run_of("scl", "--epochs", 1).code == 0
    assert summary(tmp_path / "run")["health"]["found"][0]["name"] == "too few steps"


def test_a_history_of_an_older_version_is_not_judged(run_of, tmp_path):
    assert run_of("mmdc", "--epochs", 2, "--stop-after", 1).code == 0
    file = tmp_path / "run" / "metrics.jsonl"
    old = [
        {k: v for k, v in json.loads(line).items() if k not in FIGURES.split()}
        for line in file.read_text().splitlines()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    for npz in (tmp_path / "run" / "epochs").iterdir():
        npz.unlink()
    assert run_of("mmdc", "--epochs", 2, "--resume").code == 0
    assert RunFolder(tmp_path / "run").metrics()[1]["churn"] is None


def test_what_the_page_says_is_escaped(tmp_path):
    x, two = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    evil = ("<script>alert(1)</script>",) * 3
    about, more = {"method": "m", "k": 2}, {"health": [evil]}
    page = write_gallery(tmp_path / "g.html", x, two, torch.ones(4), list("abcd"), about, **more)
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 1  # the page's own
    assert text.count("&lt;script&gt;alert(1)") == 3


def test_settings_that_were_changed_are_known():
    plan = train.make_plan("scl", "digits", limit=60, settings={"balance": "none"})
    assert train.changed(plan) == {"balance": "sinkhorn"}
    assert train.changed(train.make_plan("scl", "digits", limit=60, epochs=100)) == {}


# What a loss is that knows nothing


def built(method):
    return train.build(train.make_plan(method, "digits", limit=60, profile="ci"))[0]


def test_uniform_predictions_cost_what_the_method_says():
    votes = torch.rand(7, 10).softmax(1)
    level = built("scl").uninformed({})["train.cluster"]
    assert float(scl.cluster_loss(torch.zeros(7, 10), votes)) == pytest.approx(level)
    labels = (torch.rand(7, 7) < 0.3).float()
    level = built("lsdc").uninformed({"train.density": float(labels.mean())})["train.pairs"]
    found = lsdc.pair_loss(torch.zeros(7, 10), torch.ones(7, 10), labels)
    assert float(found) == pytest.approx(level, rel=1e-4)


def test_equal_prototypes_and_right_angles_cost_what_the_method_says():
    same, present = unit(torch.ones(10, 5)), torch.ones(10, dtype=torch.bool)
    level = built("ncc").uninformed({})["train.prototypes"]
    assert float(ncc.prototype_contrast(same, same, present)) == pytest.approx(level, rel=1e-5)
    assert level == math.log(10) == built("digpro").uninformed({})["train.prototypes"]
    eye = torch.eye(6)
    assert float(byol.alignment(eye, eye.roll(1, 0))) == built("byol").uninformed({})["train.loss"]


def test_no_single_embedding_beats_the_mean_of_the_targets():
    method = built("mmdc")
    level, q = method.uninformed({})["train.loss"], method.cloud
    z = unit(torch.randn(200, 1, 10) + 1).expand(-1, len(q), -1)
    assert min(float(mmdc.mse(one, q)) for one in z) >= level - 1e-6
    assert built("moco").uninformed({}) == {}


# Where a NaN began


def test_the_line_names_the_layer_and_the_rate(run_of):
    done = run_of("mmdc", "--epochs", 2, "--set", "lr=1e30")
    assert done.code == 2 and "learning rate too high: first " in done.last
    assert "--set lr=1e+29" in done.last and "step" in done.last


def test_a_broken_view_is_named(run_of, monkeypatch):
    views = mmdc.mmdc_views

    def broken(*args):
        def call(x, idx, draws):
            batch = views(*args)(x, idx, draws)
            poison = math.nan if draws.epoch == 1 else 1.0
            return batch | {"aug": batch["aug"] * poison}

        return call

    monkeypatch.setattr(mmdc, "mmdc_views", broken)
    monkeypatch.setattr(train, "announce", lambda *rest: None)  # it tries a late epoch
    done = run_of("mmdc", "--epochs", 3)
    assert (
        done.code == 2
        and "epoch 2: images not finite: first the augmented images (aug)" in done.last
    )


def test_compiled_networks_and_several_processes_are_not_watched(monkeypatch):
    plan = train.settled(train.make_plan("mmdc", "digits", limit=60, profile="ci"))
    method, views = train.build(plan)
    run = engine.new_run(method, plan.data, views)
    monkeypatch.setattr(engine, "world", lambda: 2)
    assert engine.origin_of_nan(run, engine.standing(run)) is None
    monkeypatch.undo()
    method.speed = method.speed._replace(compile=True)
    assert engine.origin_of_nan(run, engine.standing(run)) is None


def test_the_watch_finds_nothing_in_a_sound_epoch():
    plan = train.settled(train.make_plan("scl", "digits", limit=60, profile="ci"))
    method, views = train.build(plan)
    run = engine.new_run(method, plan.data, views)
    start = engine.standing(run)
    assert engine.origin_of_nan(run, start) is None and run.step == 1
    assert not any(m._forward_hooks for m in method.modules())
