"Weights from elsewhere: files of other programs, torchvision's own, hostile ones."

import importlib
import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import models

from conftest import DEVICE
from deepclust_nb import borrowed, train
from deepclust_nb.core import DeepClustError
from deepclust_nb.start import settings_for


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Thirty crops of two real pictures, without labels."
    folder = tmp_path_factory.mktemp("photos")
    for i in range(30):
        picture = load_sample_images().images[i % 2]
        crop = picture[10 * i % 300 :, 7 * i % 400 :][:100, :100]
        Image.fromarray(crop).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A ResNet-18 as another program stores it."
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save({"state_dict": models.resnet18().state_dict(), "epoch": 7}, path)
    return path


@pytest.fixture(scope="module")
def frozen(deepclust, photos, weights, tmp_path_factory):
    "A run on frozen features, and what it said."
    out = tmp_path_factory.mktemp("frozen") / "run"
    how = ["--k", 2, "--init", weights, "--set", "stem=torchvision", "--size", 32]
    done = deepclust("train", "frozen", "--data", photos, *how, "--out", out, "--device", DEVICE)
    assert done.code == 0, done.err
    return out, done.out


def test_the_result_says_that_it_was_learned_elsewhere(frozen, weights):
    out, said = frozen
    assert "learned elsewhere" in said and str(weights) in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["start"]["from"] == str(weights)
    assert summary["weights"] == f"learned elsewhere ({weights.name})"
    assert f"weights {summary['weights']}" in said.split("pictures")[-1]  # with the result too
    page = (out / "gallery.html").read_text(encoding="utf-8")
    assert f"weights {summary['weights']}" in page
    assert "1 main epoch on" in said and "1 epoch ·" in page


def test_the_weights_stay_as_they_were(frozen, weights):
    method, _ = train.load_run(frozen[0], DEVICE)
    theirs = torch.load(weights, weights_only=True)["state_dict"]
    for name, tensor in method.net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor.cpu(), theirs[name], rtol=0, atol=0)


def test_a_run_on_frozen_features_predicts_exports_and_resumes(deepclust, frozen, photos, tmp_path):
    out, model = frozen[0], tmp_path / "model.pt"
    assert deepclust("export", out, model).code == 0
    whole, light = (deepclust("predict", m, photos, "--device", DEVICE) for m in (out, model))
    assert whole.code == light.code == 0, whole.err + light.err
    clusters = [[line.split(",")[1] for line in done.out.splitlines()] for done in (whole, light)]
    assert clusters[0] == clusters[1] and len(clusters[0]) == 31


def test_a_method_learns_on_from_borrowed_weights(deepclust, photos, weights, tmp_path):
    how = ["--k", 2, "--init", weights, "--set", "stem=torchvision", "--set", "bs=8", "--size", 32]
    how += ["--profile", "ci", "--epochs", 1, "--device", DEVICE]
    done = deepclust("train", "moco", "--data", photos, *how, "--out", tmp_path / "run")
    assert done.code != 0 and "not the weights of this backbone" in done.last  # ci is narrow
    how += ["--set", "width=64"]
    done = deepclust("train", "moco", "--data", photos, *how, "--out", tmp_path / "run")
    assert done.code == 0, done.err


def test_pretrained_asks_the_library(deepclust, photos, weights, tmp_path, monkeypatch):
    theirs = torch.load(weights, weights_only=True)["state_dict"]
    given = models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(type(given), "get_state_dict", lambda self, **_: theirs)
    how = ["--k", 2, "--backbone", "torchvision:resnet18", "--init", "pretrained", "--size", 32]
    out = tmp_path / "run"
    done = deepclust("train", "frozen", "--data", photos, *how, "--out", out, "--device", DEVICE)
    assert done.code == 0, done.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["start"]["from"] == "torchvision:resnet18"
    monkeypatch.undo()  # nothing is fetched again
    assert deepclust("predict", out, photos / "00.png", "--device", DEVICE).code == 0


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(self, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(type(models.ResNet18_Weights.DEFAULT), "get_state_dict", offline)
    with pytest.raises(DeepClustError, match=r"cannot be had \(no route to host\)"):
        borrowed.library_weights("torchvision:resnet18")


def test_timm_is_asked_for_when_it_is_there(monkeypatch):
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net.register_parameter("scale", torch.nn.Parameter(torch.ones(2, 2)))
    made = []

    def create_model(arch, pretrained, num_classes):
        made.append((arch, pretrained, num_classes))
        return net

    about = SimpleNamespace(input_size=(3, 40, 40), mean=(0.5,) * 3, std=(0.25,) * 3)
    fake = SimpleNamespace(
        list_models=lambda: ["tiny"],
        create_model=create_model,
        get_pretrained_cfg=lambda arch: about,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    small = borrowed.Borrowed("timm:tiny.in1k")
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(small(x)[:, 0], 4 * (x.mean((1, 2, 3)) - 0.5), atol=1e-3, rtol=0)
    assert borrowed.library_weights("timm:tiny")["scale"].shape == (2, 2)
    assert made == [("tiny.in1k", False, 0), ("tiny", True, 0)]


@pytest.mark.parametrize(("ask", "library"), [("timm:x", "timm"), ("a.safetensors", "safetensors")])
def test_a_library_that_is_not_installed(ask, library, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(DeepClustError, match=f"pip install {library}"):
        settings_for(ask if ":" in ask else str(tmp_path / ask))


def test_a_hostile_file_runs_nothing(deepclust, photos, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'boom')!r}, 'w')",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    torch.save({"state_dict": Bomb()}, tmp_path / "evil.pt")
    for name in ("evil.pth", "evil.pt"):
        how = ["--k", 2, "--init", tmp_path / name, "--out", tmp_path / "run", "--size", 32]
        done = deepclust("train", "frozen", "--data", photos, *how)
        assert done.code == 2 and "nothing was loaded" in done.last
        with pytest.raises(DeepClustError, match="nothing was loaded"):
            settings_for(str(tmp_path / name))
    assert not (tmp_path / "boom").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["run", "exported"])
def test_settings_of_a_run(given, frozen, deepclust, tmp_path):
    source = frozen[0]
    if given == "exported":
        assert deepclust("export", source, tmp_path / "m.pt").code == 0
        source = tmp_path / "m.pt"
    settings, side = settings_for(str(source))
    config = json.loads((frozen[0] / "config.json").read_text())
    assert side == config["data"]["shape"][1] and settings["init"] == str(source.resolve())
    assert settings["stem"] == "torchvision" == config["recipe"]["stem"]


def test_a_square_is_seen_at_the_side_that_the_network_knows():
    seen = []
    net = borrowed.Borrowed("torchvision:mobilenet_v3_small").eval()
    net.net.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    with torch.no_grad():
        for side in (32, 224, 300):
            net(torch.rand(1, 3, side, side))
    assert seen == [(1, 3, 224, 224)] * 3
    assert np.isclose(float(net.mean.mean()), 0.449)
