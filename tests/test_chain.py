"BYOL, NCC and DigPro are one chain: with its own terms weighted zero, each is the one before it, to the last bit."

from dataclasses import replace

import pytest
import torch

from deepclust_nb.data import ImageSet, load_data
from deepclust_nb.engine import fit
from deepclust_nb.recipes import with_settings
from deepclust_nb.train import METHODS

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


def test_balanced_epochs_draw_every_cluster_equally_often(images):
    from deepclust_nb.core import generator
    from deepclust_nb.methods.ncc import balanced_order

    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    order = balanced_order(labels, 4, generator("balanced"))
    shares = labels[order].bincount(minlength=4) / len(labels)
    assert len(order) == len(labels) and (shares[:3] - 1 / 3).abs().max() < 0.05 and shares[3] == 0
    run = trained("ncc", images, balanced=True)
    assert run.images == 3 * len(images)
