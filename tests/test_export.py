"""A trained model given to others: small, in half precision, sealed by a checksum, and nothing in it is run."""

import hashlib
import json
import pickle
import re
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch

from conftest import DEVICE
from deepclust_nb import train
from deepclust_nb.core import DeepClustError
from deepclust_nb.engine import extract
from deepclust_nb.export import described, read_weights


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


def shaken(method) -> None:
    "Weights with the long tails of trained ones, and no buffer as a fresh method has it."
    stream = torch.Generator().manual_seed(0)
    for value in (t for t in method.state_dict().values() if t.is_floating_point()):
        zero = value == 0
        value.mul_(torch.randn(value.shape, generator=stream).div(2).exp())
        value.add_(torch.rand(value.shape, generator=stream).mul(0.1) * zero)


@pytest.mark.parametrize("name", train.METHODS)
def test_the_full_recipe_of_cifar10_is_small_and_whole(name, tmp_path):
    "At most 25 MB, but for a ResNet-34; features and scores are those of the run."
    plan = train.make_plan(name, train.blank_set("cifar10"), profile="full", device="cpu", k=10)
    method, _ = train.build(plan)
    shaken(method)
    folder = train.RunFolder(tmp_path / "run").open(plan.config())
    folder.save_checkpoint({"method": method.state_dict()})
    told = train.export_run(folder.path, tmp_path / "it.pt")
    files = [tmp_path / name for name in ("it.pt", "it.json")]
    most = 38e6 if plan.recipe.backbone == "resnet34" else 25e6
    assert 0.7 * most < sum(file.stat().st_size for file in files) <= most, told["bytes"]
    light, _ = train.load_run(tmp_path / "it.pt", "cpu")
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for verb in ("features", "scores"):
        with torch.no_grad():
            a, b = (getattr(m.eval(), verb)(x) for m in (method, light))
        assert (a - b).abs().max() < 0.01 * a.abs().max(), verb


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
    asked += [("evaluate", model, "--data", "digits", "--device", DEVICE)]
    done = [deepclust(*words) for words in asked]
    assert [d.code for d in done] == [2, 2, 2], [d.err for d in done]
    for d in done:
        assert not d.crash and re.fullmatch(r"deepclust: [^\n]+\n", d.last), d.err
    assert not (tmp_path / "new").exists() and not (tmp_path / "t.csv").exists()
    return [d.last for d in done]


def seal(model: Path) -> None:
    "Make the description vouch for whatever lies in the file now."
    about = json.loads(described(model).read_text(encoding="utf-8"))
    about["sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    described(model).write_text(json.dumps(about), encoding="utf-8")


@pytest.mark.parametrize("at", [0.01, 0.5, 0.99])
def test_a_changed_file_is_refused_by_its_checksum(deepclust, mine, photos, tmp_path, at):
    content = bytearray(mine.read_bytes())
    content[int(at * len(content))] ^= 1
    mine.write_bytes(content)
    assert all("SHA-256" in line for line in refusals(deepclust, mine, photos, tmp_path))


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_half_a_file_is_refused(deepclust, mine, photos, tmp_path, share):
    content = mine.read_bytes()
    mine.write_bytes(content[: int(share * len(content))])
    assert all("SHA-256" in line for line in refusals(deepclust, mine, photos, tmp_path))


@pytest.mark.parametrize("bare", [False, True])
def test_a_malicious_file_runs_nothing_even_with_its_own_checksum(
    deepclust, mine, photos, tmp_path, bare
):
    if bare:
        mine.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    else:
        content = torch.load(mine, weights_only=True)
        torch.save(content | {"exact": {"net.0.weight": Bomb(tmp_path / "boom")}}, mine)
    seal(mine)
    assert all("plain tensors" in line for line in refusals(deepclust, mine, photos, tmp_path))
    assert not (tmp_path / "boom").exists()
    torch.load(mine, weights_only=False) if not bare else pickle.loads(mine.read_bytes())
    assert (tmp_path / "boom").exists()  # it would have


def test_bytes_that_swell_are_not_unpacked(deepclust, mine, photos, tmp_path):
    "Few bytes that stand for 256 MB of zeros."
    content = torch.load(mine, weights_only=True)
    swollen = zlib.compress(bytes(2**28), 1)
    content["first"] = torch.frombuffer(bytearray(swollen), dtype=torch.uint8)
    torch.save(content, mine)
    seal(mine)
    tracemalloc.start()
    assert all("plain tensors" in line for line in refusals(deepclust, mine, photos, tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


@pytest.mark.parametrize("value", [None, "x", -1, 2.5, [], {}])
def test_a_damaged_configuration_is_refused(deepclust, mine, photos, value):
    "Each entry replaced; what a prediction does not need may be anything."
    about = json.loads(described(mine).read_text(encoding="utf-8"))
    parts = [about, about["config"], about["config"]["recipe"], about["config"]["data"]]
    for inside in parts:
        for name, kept in list(inside.items()):
            inside[name] = value
            described(mine).write_text(json.dumps(about), encoding="utf-8")
            inside[name] = kept
            asked = ("predict", mine, photos), ("evaluate", mine, "--data", "digits")
            for done in (deepclust(*words, "--device", DEVICE) for words in asked):
                assert done.code in (0, 2) and not done.crash, (name, done.err)


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
