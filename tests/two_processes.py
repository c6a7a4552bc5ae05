"""Train every method for three steps in float64 and keep what came out; started alone and by torchrun.

python tests/two_processes.py OUT.pt METHOD ...
"""

import sys
from dataclasses import replace

import torch
from torch import nn

from deepclust_nb.data import load_data
from deepclust_nb.engine import fit
from deepclust_nb.processes import join, rank
from deepclust_nb.recipes import with_epochs, with_settings
from deepclust_nb.train import METHODS

# norms of backbones see a share of the batch; these do not look at other images at all
SETTINGS = {"width": 4, "bs": 20, "lr": 0.01, "log_every": 1}


def without_batch_norm(module: nn.Module) -> nn.Module:
    "The same network with a norm of each image by itself."
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, part.num_features))
        else:
            without_batch_norm(part)
    return module


def in_double(views):
    "The same views in float64."

    def double(x, idx, draws):
        batch = views(x, idx, draws)
        return {n: v.double() if v.is_floating_point() else v for n, v in batch.items()}

    return double


def three_steps(name: str) -> dict:
    "An epoch of each stage on 59 digits, batches of 20, 20 and 19; weights, gradients and terms."
    data = load_data("digits").subset(torch.arange(59))
    settings = SETTINGS | ({"warmup": 0.0, "sigma": 0.1} if name in ("ncc", "digpro") else {})
    recipe = with_settings(METHODS[name].recipe(data, "ci"), settings)
    recipe = replace(recipe, init="random")
    recipe = with_epochs(recipe, len(recipe.stages()))
    torch.manual_seed(0)
    method, views = METHODS[name].build(recipe, data, 10, 0)
    method = without_batch_norm(method).double()
    plain = method.view
    method.view = lambda x: plain(x).double()
    settings = recipe.fit_settings() | {"log_every": 1}
    run = fit(method, data, in_double(views), progress=False, **settings)
    grads = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    assert run.step >= 3
    return {"state": method.state_dict(), "grads": grads, "terms": run.history[-1]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    join("cpu")
    found = {name: three_steps(name) for name in sys.argv[2:]}
    if rank() == 0:
        torch.save(found, sys.argv[1])
