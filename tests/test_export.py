"""A trained model given to others: small, in half precision, sealed by a checksum, and nothing in it is run."""

import hashlib
import io
import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from conftest import DEVICE
from deepclust_nb import train
from deepclust_nb.core import DeepClustError
from deepclust_nb.data import ImageSet
from deepclust_nb.engine import extract
from deepclust_nb.export import described, halved, read_by, read_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory, deepclust, photo_run) -> Path:
    "The exported model of the run on a folder of pictures; tests leave it as it is."
    out = tmp_path_factory.mktemp("export") / "photos.pt"
    done = deepclust("export", photo_run, out)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def mine(model, tmp_path) -> Path:
    "A copy to spoil."
    for file in (model, described(model)):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / model.name


class Bomb:
    "Makes a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def rows(text: str) -> dict[str, tuple[int, float]]:
    "Cluster and confidence of each file of a table."
    cells = [line.rsplit(",", 2) for line in text.splitlines()[1:]]
    return {name: (int(cluster), float(sure)) for name, cluster, sure in cells}


def test_predictions_are_those_of_the_run(deepclust, model, photo_run, photos):
    whole, light = (deepclust("predict", m, photos, "--device", DEVICE) for m in (photo_run, model))
    assert light.code == 0, light.err
    one, other = rows(whole.out), rows(light.out)
    assert one.keys() == other.keys() and len(one) == 60
    assert sum(one[n][0] != other[n][0] for n in one) <= 1  # an image between two clusters may move
    assert all(abs(one[n][1] - other[n][1]) < 0.02 for n in one if one[n][0] == other[n][0])


@pytest.mark.parametrize("name", train.METHODS)
def test_every_method_is_exported_and_predicts_the_same(name, tmp_path, device):
    digits = train.limited(train.load_data("digits"), 100)
    plan = train.make_plan(name, digits, profile="ci", epochs=2, device=DEVICE)
    plan = train.replace(
        plan, recipe=train.with_settings(plan.recipe, {"width": 8, "init": "random"})
    )
    method, views = train.build(plan)
    settings = plan.recipe.fit_settings()
    config = plan.config()
    folder = train.RunFolder(tmp_path / "run").open(config)
    train.fit(method, plan.data, views, folder, progress=False, **settings)
    told = train.export_run(tmp_path / "run", tmp_path / "it.pt")
    light, _ = train.load_run(tmp_path / "it.pt", DEVICE)
    full = [extract(method, plan.data, f) for f in (method.features, method.scores)]
    half = [extract(light, plan.data, f) for f in (light.features, light.scores)]
    for a, b in zip(full, half):
        assert (a - b).abs().max() < 0.02 * a.abs().max()
    assert (full[1].argmax(1) == half[1].argmax(1)).float().mean() >= 0.98
    again, _ = train.build(plan)
    train.start_from(again, tmp_path / "it.pt")
    kept = dict(method.named_modules())[told["backbone"].removesuffix(".")].state_dict()
    for key, value in again.net.state_dict().items():
        assert torch.allclose(value.float(), kept[key].float(), rtol=1e-3, atol=1e-6), key


def test_the_description_says_what_it_is(model, photo_run, photos):
    about = json.loads(described(model).read_text(encoding="utf-8"))
    assert about["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert about["bytes"] == model.stat().st_size and about["file"] == model.name
    config = json.loads((photo_run / "config.json").read_text(encoding="utf-8"))
    assert about["config"]["recipe"] == config["recipe"] and about["config"]["k"] == 4
    assert about["result"]["epochs"] == 3
    assert set(about["left_out"]) == {"t", "cloud", "slot"}
    assert str(photos) not in described(model).read_text(encoding="utf-8")  # nobody's business


def test_weights_are_halves_and_small_tensors_exact(model, photo_run):
    weights, _ = read_weights(model)
    state = torch.load(photo_run / "checkpoint.pt", map_location="cpu", weights_only=True)["method"]
    for name, value in weights.items():
        layer = name.endswith("weight") and value.ndim > 1
        assert value.dtype == (torch.float16 if layer else state[name].dtype), name
        assert layer or torch.equal(value, state[name]), name
    assert model.stat().st_size < 0.5 * (photo_run / "checkpoint.pt").stat().st_size


@pytest.mark.parametrize("name", ["mmdc", "lsdc", "scl", "moco", "instance", "rotnet"])
def test_resnet18_of_full_width_takes_25_mb_at_most(name):
    data = ImageSet(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), title="none")
    settings = {"backbone": "resnet18", "width": 64, "init": "random"}
    plan = train.make_plan(name, data, k=10, profile="full", device="cpu", settings=settings)
    method, _ = train.build(plan)
    names = read_by(method, torch.rand(2, 3, 32, 32))
    state = {n: t for n, t in method.state_dict().items() if n in names}
    buffer = io.BytesIO()
    torch.save(halved(state, train.parameters_of(method)), buffer)
    assert 22e6 < len(buffer.getvalue()) < 25e6


def test_evaluate_reads_it(deepclust, trained_digits):
    run, light = trained_digits
    whole, half = (
        json.loads(deepclust("evaluate", m, "--device", DEVICE).out) for m in (run, light)
    )
    assert half["acc"] == pytest.approx(whole["acc"], abs=0.02)


@pytest.fixture(scope="module")
def trained_digits(tmp_path_factory, deepclust, tiny):
    "A run on labelled digits, and what is exported of it."
    top = tmp_path_factory.mktemp("digits")
    options = ["--data", "digits", "--limit", 200, "--epochs", 4, "--out", top / "run", *tiny]
    assert deepclust("train", "mmdc", *options).code == 0
    assert deepclust("export", top / "run", top / "digits.pt").code == 0
    return top / "run", top / "digits.pt"


def test_a_run_starts_from_it(deepclust, trained_digits, tiny, tmp_path, no_figures):
    _, light = trained_digits
    options = ["--data", "digits", "--limit", 200, "--epochs", 2, "--out", tmp_path / "new", *tiny]
    done = deepclust("train", "mmdc", *options, "--init", light)
    assert done.code == 0, done.err
    assert "k-means on the start (digits.pt)" in done.out
    done = deepclust("train", "mmdc", *options, "--overwrite", "--init", light, "--set", "width=6")
    assert done.code == 2 and "network differs" in done.last


# What is refused


def refusals(deepclust, model: Path, photos: Path, tmp_path: Path) -> list[str]:
    "What the commands that read a model say; each leaves nothing behind."
    train_on = ["--data", photos, "--k", 4, "--out", tmp_path / "new", "--device", DEVICE]
    asked = [("predict", model, photos, "--out", tmp_path / "t.csv")]
    asked += [("train", "mmdc", *train_on, "--init", model, "--set", "width=4")]
    done = [deepclust(*words) for words in asked]
    assert [d.code for d in done] == [2, 2], [d.err for d in done]
    for d in done:
        assert not d.crash and re.fullmatch(r"deepclust: [^\n]+\n", d.last), d.err
    assert not (tmp_path / "new").exists() and not (tmp_path / "t.csv").exists()
    return [d.last for d in done]


@pytest.mark.parametrize("at", [0.01, 0.5, 0.99])
def test_a_changed_file_is_refused_by_its_checksum(deepclust, mine, photos, tmp_path, at):
    content = bytearray(mine.read_bytes())
    content[int(at * len(content))] ^= 1
    mine.write_bytes(content)
    assert all("SHA-256" in line for line in refusals(deepclust, mine, photos, tmp_path))


@pytest.mark.parametrize("bare", [False, True])
def test_a_malicious_file_runs_nothing_even_with_its_own_checksum(
    deepclust, mine, photos, tmp_path, bare
):
    if bare:
        mine.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    else:
        torch.save({"net.0.weight": Bomb(tmp_path / "boom")}, mine)
    about = json.loads(described(mine).read_text(encoding="utf-8"))
    about["sha256"] = hashlib.sha256(mine.read_bytes()).hexdigest()
    described(mine).write_text(json.dumps(about), encoding="utf-8")
    assert all("plain tensors" in line for line in refusals(deepclust, mine, photos, tmp_path))
    assert not (tmp_path / "boom").exists()
    torch.load(mine, weights_only=False) if not bare else pickle.loads(mine.read_bytes())
    assert (tmp_path / "boom").exists()  # it would have


def test_the_description_must_be_there_and_fit(deepclust, mine, photos, tmp_path):
    about = described(mine).read_text(encoding="utf-8")
    for wrong in ("", "[]", '{"sha256": 1}'):
        described(mine).write_text(wrong, encoding="utf-8")
        assert all("photos.json" in line for line in refusals(deepclust, mine, photos, tmp_path))
    other = json.loads(about)
    other["config"]["recipe"]["width"] = 8
    described(mine).write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(DeepClustError, match="photos.json"):
        train.load_run(mine, DEVICE)
    described(mine).unlink()
    assert all("photos.json" in line for line in refusals(deepclust, mine, photos, tmp_path))


def test_export_where_it_cannot_write(deepclust, photo_run, model, tmp_path):
    for out in (model, tmp_path / "model.bin", tmp_path / "missing" / "model.pt"):
        before = model.read_bytes()
        done = deepclust("export", photo_run, out)
        assert done.code == 2 and not done.crash and str(out) in done.last
        assert model.read_bytes() == before
    assert "no run" in deepclust("export", tmp_path, tmp_path / "x.pt").last
    assert list(tmp_path.iterdir()) == []
