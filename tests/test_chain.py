"BYOL, NCC and DigPro are one chain: with its own terms weighted zero, each is the one before it, to the last bit."

from dataclasses import replace
from unittest import mock

import pytest
import torch

from deepclust_nb.data import ImageSet, load_data
from deepclust_nb.engine import extract, fit, train_pass, visits
from deepclust_nb.recipes import with_settings
from deepclust_nb.train import METHODS, make_plan, start_from, train

SMALL = {
    "width": 4,
    "main_epochs": 3,
    "warmup": 0.0,
    "bs": 50,
    "hidden": 32,
    "dim": 16,
    "log_every": 9,
}


@pytest.fixture(scope="module")
def images(device) -> ImageSet:
    return load_data("digits").subset(torch.arange(200)).to(device)


def trained(name: str, images: ImageSet, **settings):
    "The run of a method with a small recipe."
    recipe = with_settings(METHODS[name].recipe(images, "ci"), SMALL | settings)
    torch.manual_seed(0)
    method, views = METHODS[name].build(recipe, images, 10, 0)
    return fit(method.to(images.x.device), images, views, progress=False, **recipe.fit_settings())


def assert_equal_weights(one, other) -> None:
    "Every weight and buffer that both have, and the loss, are the same to the last bit."
    a, b = one.method.state_dict(), other.method.state_dict()
    assert a.keys() <= b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [line["train.loss"] for line in one.history] == [
        line["train.loss"] for line in other.history
    ]


def test_ncc_without_its_terms_is_byol(images):
    ncc = trained("ncc", images, sigma=0.0, weight=0.0)
    assert_equal_weights(trained("byol", images), ncc)
    assert not any("prototypes" in name for line in ncc.history for name in line)


def test_digpro_without_groups_is_ncc(images):
    constant = {"momentum": 0.9, "top": 0.9}
    ncc = trained("ncc", images, **constant)
    digpro = trained("digpro", images, group_weight=0.0, **constant)
    assert_equal_weights(ncc, digpro)
    assert digpro.method.bank.written == 0


def test_digpro_without_anything_is_byol(images):
    off = {"group_weight": 0.0, "weight": 0.0, "sigma": 0.0, "top": 1.0}
    assert_equal_weights(trained("byol", images), trained("digpro", images, **off))


@pytest.mark.parametrize("term", [{"sigma": 0.01}, {"weight": 0.1}])
def test_each_term_of_ncc_makes_a_difference(images, term):
    plain = trained("byol", images).history[-1]["train.loss"]
    assert (
        trained("ncc", images, **({"sigma": 0.0, "weight": 0.0} | term)).history[-1]["train.loss"]
        != plain
    )


def test_warm_up_is_byol(images):
    "No prototype and no noise before the warm-up is over."
    warm = {"warmup": 0.67}
    ncc, byol = trained("ncc", images, **warm), trained("byol", images, **warm)
    losses = [[line["train.loss"] for line in run.history] for run in (ncc, byol)]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
    assert ["train.prototypes" in line for line in ncc.history] == [False, False, True]


def test_images_that_are_not_clustered_train_the_network_first(images):
    "Two phases an epoch, as for STL-10; clusters and their labels know the clustered images only."
    extra = replace(load_data("digits").subset(torch.arange(200, 450)), y=None).to(images.x.device)
    run = trained("ncc", replace(images, extra=extra), queue=64)
    assert run.images == 3 * (200 + 250) and len(run.method.pseudo) == 200
    assert {"extra.loss", "train.loss", "train.prototypes"} <= run.history[0].keys()
    assert "extra.prototypes" not in run.history[0]
    ids = run.method.queue.ids
    assert ids.max() < 200 and run.method.queue.written == 3 * 2 * 200


def test_further_images_are_predicted_from_neighbours_too(images):
    "The noise belongs to the instance loss, so the first phase has it as well."
    extra = load_data("digits").subset(torch.arange(200, 300)).to(images.x.device)
    losses = {
        sigma: trained("ncc", replace(images, extra=extra), sigma=sigma).history[-1]["extra.loss"]
        for sigma in (0.0, 3.0)
    }
    assert losses[0.0] != losses[3.0]


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_a_start_reaches_the_slow_copy(images, tmp_path, no_figures, name):
    "What is measured of a start, before the first epoch, is measured on its weights."
    options = {"profile": "ci", "device": str(images.x.device), "settings": {"width": 4}}
    plan = make_plan("instance", images, epochs=1, **options)
    train(plan, tmp_path / "start", progress=False, say=lambda line: None)
    recipe = with_settings(METHODS[name].recipe(images, "ci"), {"width": 4})
    method = METHODS[name].build(recipe, images, 10, 0)[0].to(images.x.device)
    before = extract(method, images, lambda x: method.slow(method.view(x)))
    start_from(method, tmp_path / "start")
    after = extract(method, images, lambda x: method.slow(method.view(x)))
    trained_net = extract(method, images, lambda x: method.encoder(method.view(x)))
    assert torch.equal(after, trained_net) and not torch.allclose(after, before)


def test_balanced_epochs_draw_every_cluster_equally_often(images):
    from deepclust_nb.core import generator
    from deepclust_nb.methods.ncc import balanced_order

    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    order = balanced_order(labels, 4, generator("balanced"))
    shares = labels[order].bincount(minlength=4) / len(labels)
    assert len(order) == len(labels) and (shares[:3] - 1 / 3).abs().max() < 0.05 and shares[3] == 0
    run = trained("ncc", images, balanced=True)
    seen, order = visits(run, run.method.passes(run)[0])
    assert seen is run.data and len(order) == len(images) and len(order.unique()) < len(images)


def test_an_image_that_is_drawn_twice_is_changed_twice(images):
    "Draws belong to visits where a pass has an order of its own."
    run = trained("ncc", images, balanced=True, weight=0.0)
    what, shown = run.method.passes(run)[0], []

    def views(x, idx, draws):
        batch = run.views(x, idx, draws)
        shown.append(batch["views"][: len(x)])
        return batch

    twice = what._replace(views=views, order=torch.zeros(6, dtype=torch.long))
    train_pass(run, twice, (0.0, 1.0), mock.Mock())
    assert len(torch.cat(shown).flatten(1).unique(dim=0)) == 6
