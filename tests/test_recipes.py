"Every recipe takes a step at its real input shape, and its network is the one that its name says."

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from conftest import DEVICE
from deepclust_nb import train
from deepclust_nb.data import ImageSet
from deepclust_nb.engine import LARS, fit, new_run, train_step
from deepclust_nb.methods import byol, digpro, lsdc, mmdc, ncc, scl
from deepclust_nb.named import DATASETS
from deepclust_nb.nets import backbone
from deepclust_nb.recipes import blank_set
from deepclust_nb.runs import RunFolder
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
    changes |= {"accumulate": min(2, recipe.accumulate)}
    recipe = replace(recipe, **changes)
    net, views = METHODS[method].build(recipe, data, 4, 0)
    settings = recipe.run_settings()
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


# What papers and programs say, typed again from there

PAPERS = {"mmdc": mmdc, "lsdc": lsdc, "scl": scl, "byol": byol, "ncc": ncc, "digpro": digpro}
SAID = {  # (method, set) -> settings of the full recipe
    ("mmdc", "mnist"): {"main_epochs": 20, "refine_epochs": 30, "wd": 5e-4, "backbone": "vgg4"},
    ("mmdc", "cifar10"): {"main_epochs": 350, "wd": 5e-4, "crops": (20,), "size": 32},
    ("mmdc", "cifar100-20"): {"main_epochs": 350, "wd": 1e-4, "crops": (20,), "size": 32},
    ("mmdc", "stl10"): {"refine_epochs": 50, "wd": 5e-4, "crops": (64,), "size": 64},
    ("mmdc", "imagenet-10"): {"refine_epochs": 50, "wd": 5e-4, "crops": (64,), "size": 64},
    ("mmdc", "tiny-imagenet"): {"rotation": True, "wd": 1e-4, "crops": (40,), "size": 64},
    ("lsdc", "cifar10"): {"main_epochs": 220, "lr": 0.1, "bs": 256, "pad": 4, "neighbours": 18},
    ("lsdc", "stl10"): {"pad": 12, "flip": True},
    ("ncc", "cifar10"): {"bs": 512, "lr": 0.1, "top": 0.996, "balanced": False, "blur": 0.0},
    ("ncc", "cifar100-20"): {"bs": 256, "lr": 0.05, "top": 1.0, "balanced": True},
    ("ncc", "imagenet-dogs"): {"bs": 256, "size": 224, "blur": 0.5, "backbone": "resnet34"},
    ("ncc", "tiny-imagenet"): {"bs": 1024, "lr": 0.2, "size": 32, "top": 0.996},
    ("ncc", "imagenet"): {"bs": 4096, "lr": 4.8, "wd": 1e-6, "momentum": 0.99, "queue": 10_240}
    | {"weight": 0.001, "sigma": 1e-4, "every": 10, "faster": 1.0, "main_epochs": 200, "warm": 10}
    | {"optimiser": "lars", "decay": "weights", "backbone": "resnet50", "size": 224},
    ("byol", "imagenet"): {"bs": 4096, "lr": 3.2, "wd": 1.5e-6, "momentum": 0.996, "top": 1.0}
    | {"blur": 1.0, "other_blur": 0.1, "solarise": 0.0, "other_solarise": 0.2, "saturation": 0.2},
    ("digpro", "rsod"): {"bs": 256, "lr": 0.05, "warm": 50, "group_weight": 1.0, "size": 32},
    ("digpro", "uc-merced"): {"bs": 256, "warm": 200, "group_weight": 0.5, "size": 32},
    ("digpro", "siri-whu"): {"bs": 256, "warm": 200, "group_weight": 1.0, "size": 32},
    ("digpro", "imagenet-10"): {"bs": 128, "lr": 0.025, "group_weight": 0.3, "size": 96}
    | {"stem": "conv", "backbone": "resnet18", "blur": 0.0, "balanced": False, "middle": 1.0},
    ("digpro", "imagenet-dogs"): {"bs": 128, "lr": 0.025, "group_weight": 0.5, "size": 96},
    ("digpro", "tiny-imagenet"): {"bs": 1024, "lr": 0.2, "group_weight": 0.1, "slots": 2560},
}


@pytest.mark.parametrize(("method", "name"), SAID)
def test_full_recipes_are_those_of_the_papers(method, name):
    recipe = METHODS[method].recipe(blank_set(name), "full")
    assert {key: getattr(recipe, key) for key in SAID[method, name]} == SAID[method, name]


@pytest.mark.parametrize("method", PAPERS)
def test_every_set_of_a_paper_has_its_recipes(method):
    "Known before a run: what was measured, or what the paper has, or that nobody knows."
    paper = PAPERS[method].PAPER
    sets = {name for name, row in PAPERS[method].PUBLISHED.items()}
    assert sets <= set(paper.ours) <= set(DATASETS)
    assert {name for m, name in SAID if m == method} <= set(paper.ours)
    for name in paper.ours:
        full, quick = (METHODS[method].recipe(blank_set(name), p) for p in ("full", "gpu"))
        assert paper.lacks(name, full) <= set(asdict(full)), name
        assert sum(n for _, n in quick.stages()) <= sum(n for _, n in full.stages()), name
        for recipe in (full, quick):
            known = paper.results.get(name, {}).get("acc")
            assert f"{known or 'not measured here'}" in recipe.expects, name


@pytest.mark.parametrize("method", LEARNING)
def test_long_recipes_say_what_to_expect(method):
    for name in DATASETS:
        for profile in ("gpu", "full"):
            assert METHODS[method].recipe(blank_set(name), profile).expects, (name, profile)


# Optimiser and norms


def some_run(folder, **how):
    "Sixty digits, three epochs of BYOL with LARS, taken in two parts."
    settings = {"width": 4, "hidden": 16, "dim": 8, "optimiser": "lars", "accumulate": 2}
    options = {"profile": "ci", "limit": 60, "epochs": 3, "device": DEVICE}
    plan = train.make_plan("byol", "digits", settings=settings | {"bs": 30}, **options)
    method, views = train.build(plan)
    told = {"method": "byol", "recipe": {}, "data": {}}
    where = RunFolder(folder).open(told, resume=True)
    fit(method, plan.data, views, where, progress=False, **plan.recipe.fit_settings(), **how)
    return where.checkpoint()


def test_a_run_with_lars_is_taken_up(tmp_path):
    whole = some_run(tmp_path / "whole")
    some_run(tmp_path / "cut", stop_after=1)
    parts = some_run(tmp_path / "cut", resume=True)
    state, again = (found["optimiser"]["state"] for found in (whole, parts))
    assert state.keys() == again.keys() and len(state) > 10
    for i, one in state.items():
        assert torch.equal(one["velocity"], again[i]["velocity"]) and one["velocity"].any()
    pairs = zip(whole["method"].values(), parts["method"].values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_lars_moves_each_layer_in_proportion():
    "The first step of a recipe: every matrix by the same share of its length, as a flat loss allows."
    plan = train.make_plan(
        "byol", "digits", settings={"optimiser": "lars"}, limit=64, device=DEVICE
    )
    method, views = train.build(plan)
    run = new_run(method, plan.data, views, optimiser=LARS, lr=1.0, wd=0.0, bs=64)
    before = {p: p.detach().clone() for p in method.parameters() if p.requires_grad}
    method.train().e_step(run)
    idx, x = next(iter(run.data.batches(64)))
    train_step(run, method.passes(run)[0], idx, x)
    rates = {p: group["lr"] for group in run.optimiser.param_groups for p in group["params"]}
    for p, old in before.items():
        if p.ndim > 1:
            share = (p.detach() - old).norm() / old.norm()
            assert float(share) == pytest.approx(0.001 * rates[p], rel=1e-3)


def test_a_summary_says_whether_norms_were_joined():
    method = METHODS["byol"].build(byol.BYOLRecipe(width=4), blank_set("cifar10"), 4, 0)[0]
    assert not train.has_joint_norms(method)
    nn.SyncBatchNorm.convert_sync_batchnorm(method.net)
    assert train.has_joint_norms(method)
