"Every recipe takes a step at its real input shape, and its network is the one that its name says."

from dataclasses import asdict, replace

import pytest
import torch

from deepclust_nb.data import ImageSet
from deepclust_nb.engine import new_run, train_step
from deepclust_nb.named import DATASETS
from deepclust_nb.nets import backbone
from deepclust_nb.train import METHODS
from learning import LEARNING

WITHOUT = (
    "main_epochs",
    "warm_epochs",
    "refine_epochs",
    "log_every",
    "expects",
    "init",
    "lr",
    "wd",
)
COUNT = {  # weights of torchvision's networks, their classifier and, for `conv`, 7x7 stem exchanged
    ("resnet18", "torchvision"): 11_689_512 - 513_000,
    ("resnet18", "conv"): 11_689_512 - 513_000 - 9_408 + 1_728,
    ("resnet34", "torchvision"): 21_797_672 - 513_000,
    ("resnet34", "conv"): 21_797_672 - 513_000 - 9_408 + 1_728,
    ("resnet50", "torchvision"): 25_557_032 - 2_049_000,
    ("resnet50", "conv"): 25_557_032 - 2_049_000 - 9_408 + 1_728,
}


def images(name: str, n: int = 24) -> ImageSet:
    "Noise in the shape of a set."
    x = torch.randint(0, 256, (n, *DATASETS[name].square), dtype=torch.uint8)
    return ImageSet(x, title=name)


def recipes(profile: str) -> list:
    "Method, set and recipe; a recipe that differs from another only in its length is left out."
    found = {}
    for method in LEARNING:
        card = METHODS[method]
        for name, info in DATASETS.items():
            full = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(info.n, *info.square)
            recipe = card.recipe(ImageSet(full, title=name), profile)
            kept = {k: v for k, v in asdict(recipe).items() if k not in WITHOUT}
            found.setdefault((method, repr(kept), info.square[0]), (method, name, recipe))
    return list(found.values())


ALL = [(profile, *what) for profile in ("full", "gpu") for what in recipes(profile)]


@pytest.mark.parametrize(
    ("profile", "method", "name", "recipe"), ALL, ids=[f"{p}-{m}-{n}" for p, m, n, _ in ALL]
)
def test_a_step_at_the_real_shape(profile, method, name, recipe):
    "A narrow network, few images, all terms of the loss."
    data = images(name)
    changes = {"width": 8, "bs": len(data), "init": "random"}  # 4 crash oneDNN beyond 32 px
    changes |= {n: 16 for n in ("hidden", "slots") if getattr(recipe, n, None)}
    changes |= {"neighbours": 5} if hasattr(recipe, "neighbours") else {}
    recipe = replace(recipe, **changes)
    net, views = METHODS[method].build(recipe, data, 4, 0)
    settings = {k: v for k, v in recipe.fit_settings().items() if k != "log_every"}
    run = new_run(net, data, views, **settings)
    net.train()
    net.stage, net.epoch = run.stage(run.epochs - 1), run.epochs - 1
    run.epoch = net.epoch
    net.begin()
    net.e_step(run)
    idx = torch.arange(len(data))
    for what in net.passes(run):
        run.at(0.99)
        terms = train_step(run, what, idx, data.x.float() / 255)
        assert all(value.isfinite() for value in terms.values()), terms
    assert net.scores(data.x[:2].float() / 255).shape == (2, 4)


@pytest.mark.parametrize(("name", "stem"), COUNT)
def test_names_are_architectures(name, stem):
    "As many weights as the published network has, less what is exchanged."
    with torch.device("meta"):
        net = backbone(name, 3, None, stem)
    assert sum(p.numel() for p in net.parameters()) == COUNT[name, stem]


def test_full_recipes_use_those_networks():
    "Whatever a paper's recipe names, at its full width."
    for method, name, recipe in recipes("full"):
        assert recipe.width is None or name in ("digits", "mnist", "fashion-mnist"), (method, name)
