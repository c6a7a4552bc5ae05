"""Switches of a run: bf16, channels-last, compiled networks, a batch in parts; each beside the plain float32 step, for every method."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from conftest import DEVICE
from deepclust_nb import engine, speed, train
from deepclust_nb.core import DeepClustError
from deepclust_nb.data import ImageSet
from deepclust_nb.engine import new_run, train_step
from deepclust_nb.speed import Speed
from learning import LEARNING

PLAIN = Speed("float32", False, False)
# largest relative difference of the loss, smallest cosine of the gradients, in the first step of a
# network of four layers; ResNet-18 at random weights magnifies bf16's rounding to cosines of 0.9
NEAR = {"bf16": (5e-3, 0.98), "channels_last": (1e-5, 0.9999), "compile": (1e-5, 0.9999)}
SWITCHES = {
    "bf16": Speed("bf16", True, False),
    "channels_last": Speed("float32", True, False),
    "compile": Speed("float32", True, True),
}
WAITS = {"mmdc", "nat"}  # they assign a batch on the CPU, as stated


@pytest.fixture(scope="module")
def images(device) -> ImageSet:
    "Blots of colour."
    small = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(small, size=32, mode="bilinear").mul(255).to(torch.uint8)
    return ImageSet(x, title="blots").to(device)


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch):
    "torch.compile without its slow half: graphs are captured and differentiated, no code is made."
    monkeypatch.setattr(engine, "prepare", partial(speed.prepare, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def started(name: str, images: ImageSet, how: Speed = PLAIN, change=None, **settings):
    "A run in its last epoch, when every term of the loss counts."
    recipe = {"width": 16, "bs": 32} | settings
    plan = train.make_plan(name, images, k=4, device=DEVICE, settings=recipe)
    method, views = train.build(plan)
    options = plan.recipe.fit_settings() | {"speed": how}
    options.pop("log_every")
    run = new_run((change or (lambda m: m))(method), plan.data, views, **options)
    run.epoch = run.epochs - 1
    run.method.train().epoch = run.epoch
    run.at(0.9)
    run.epoch = 0  # a first E-step, so that slow copies are copies
    run.method.e_step(run)
    run.epoch = run.epochs - 1
    return run


def gradient(run) -> torch.Tensor:
    "All gradients as one row."
    return torch.cat([p.grad.flatten() for p in run.method.parameters() if p.grad is not None])


def first_step(run) -> tuple[float, torch.Tensor]:
    "Loss and gradient of the first step; its rate is zero."
    for group in run.optimiser.param_groups:
        group["lr"] = 0.0
    idx, x = next(iter(run.data.batches(run.bs)))
    (what, *_) = reversed(run.method.passes(run))
    terms = train_step(run, what, idx, x)
    assert all(v.isfinite() for v in terms.values())
    return float(terms["loss"]), gradient(run)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", LEARNING)
def test_each_switch_is_near_the_plain_step(images, name, switch):
    small = {"backbone": "small_cnn"}
    plain, fast = (started(name, images, how, **small) for how in (PLAIN, SWITCHES[switch]))
    assert list(plain.method.state_dict()) == list(fast.method.state_dict())
    compiled = [net._compiled_call_impl is not None for net in speed.networks(fast.method)]
    assert compiled and set(compiled) == {switch == "compile"}
    (loss, grad), (other, its) = first_step(plain), first_step(fast)
    far, cosine = NEAR[switch]
    assert other == pytest.approx(loss, rel=far)
    assert torch.cosine_similarity(grad, its, dim=0) > cosine
    assert {p.dtype for p in fast.method.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", LEARNING)
def test_bf16_trains(images, name):
    run = started(name, images, SWITCHES["bf16"])
    idx, x = next(iter(run.data.batches(run.bs)))
    for _ in range(3):
        for what in run.method.passes(run):
            run.at(0.5)
            terms = train_step(run, what, idx, x)
            assert all(v.isfinite() for v in terms.values())
    assert all(t.isfinite().all() for t in run.method.state_dict().values())
    _, confidence = engine.assignments(run.method, run.data)
    assert confidence.dtype == torch.float32


def test_e_step_computes_as_training_does_and_clusters_are_exact(images):
    run, seen = started("byol", images, SWITCHES["bf16"]), []
    hook = run.method.slow[0].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    h = engine.extract(run.method, run.data, run.method.features)
    engine.assignments(run.method, run.data)
    hook.remove()
    assert seen == [torch.bfloat16, torch.float32] and h.dtype == torch.float32


# A batch in parts


def no_norms(method: nn.Module) -> nn.Module:
    "The method without batch-norms, which would see the parts instead of the batch."
    for part in list(method.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(part, name, nn.Identity())
    return method


def cut(name: str, images: ImageSet, parts: int) -> torch.Tensor:
    "The gradient of a batch, or the sum of those of its parts, whether or not the method allows it."
    run = started(name, images, change=no_norms, backbone="small_cnn", bs=31)
    idx, x = next(iter(run.data.batches(run.bs)))
    (what, *_) = reversed(run.method.passes(run))
    for rows, pixels in speed.parts_of((idx, x), parts):
        loss = engine.terms_of(run, what, rows, pixels, rows)["loss"]
        (loss * (len(rows) / len(idx))).backward()
    return gradient(run)


@pytest.mark.parametrize("name", LEARNING)
def test_parts_give_the_gradient_of_the_batch_where_that_is_claimed(images, name):
    whole, parts = cut(name, images, 1), cut(name, images, 3)
    same = torch.allclose(whole, parts, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert same == started(name, images).method.splits


@pytest.mark.parametrize("name", ["rotnet", "moco", "byol"])
def test_a_step_in_parts_is_the_step(images, name):
    runs = [started(name, images, change=no_norms, backbone="small_cnn", bs=31) for _ in "ab"]
    runs[1].accumulate = 3
    (loss, whole), (other, parts) = (first_step(run) for run in runs)
    assert other == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    pairs = zip(*(run.method.state_dict().values() for run in runs))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)  # memories, too


def test_a_loss_that_compares_images_is_not_cut(images):
    plan = train.make_plan("instance", images, k=4, settings={"accumulate": 2})
    with pytest.raises(DeepClustError, match="accumulate=2.*Instance.*bs"):
        train.build(plan)
    with pytest.raises(DeepClustError, match="accumulate=0"):
        new_run(started("rotnet", images).method, images, None, accumulate=0)


def test_a_refused_cut_leaves_no_folder(deepclust, tiny, tmp_path):
    options = ["--data", "digits", "--limit", 60, "--out", tmp_path / "out", *tiny]
    done = deepclust("train", "lsdc", *options, "--set", "accumulate=2")
    assert done.code == 2 and "accumulate=2" in done.last and not (tmp_path / "out").exists()


# Kept with the run


@pytest.fixture
def trained(deepclust, tiny, tmp_path, no_figures):
    "Train 60 digits for three epochs into a folder; what its configuration says of the switches."

    def call(*more) -> dict:
        options = ["--data", "digits", "--limit", 60, "--epochs", 3, "--out", tmp_path / "run"]
        done = deepclust("train", "byol", *options, *tiny, *more)
        assert done.code == 0, done.crash or done.last
        recipe = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
        return {name: recipe[name] for name in Speed._fields} | {"said": done.out}

    return call


def test_switches_are_kept_and_restored(trained, tmp_path):
    first = trained("--stop-after", 1, "--precision", "bf16", "--channels-first")
    assert (first["precision"], first["channels_last"]) == ("bf16", False)
    assert " in bf16" in first["said"]
    again = trained("--stop-after", 2, "--resume")
    assert (again["precision"], again["channels_last"]) == ("bf16", False)
    other = trained("--resume", "--precision", "float32")
    assert (other["precision"], other["channels_last"]) == ("float32", False)


def test_compiled_and_plain_parts_of_a_run_share_a_checkpoint(trained, tmp_path):
    assert trained("--stop-after", 1, "--compile")["compile"] is True
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert not [name for name in state["method"] if "orig_mod" in name]
    assert trained("--stop-after", 2, "--no-compile", "--resume")["compile"] is False
    assert trained("--compile", "--resume")["compile"] is True


def test_clusters_of_a_bf16_run_are_those_that_predict_finds(trained, tmp_path):
    trained("--precision", "bf16")
    method, _ = train.load_run(tmp_path / "run", DEVICE)
    digits = train.limited(train.load_data("digits"), 60)
    table = (tmp_path / "run" / "assignments.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in table] == train.predict(method, digits)[0].tolist()


def test_without_a_compiler_the_run_ends_in_one_line(deepclust, tiny, tmp_path, monkeypatch):
    def none(graph, inputs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(engine, "prepare", partial(speed.prepare, backend=none))
    options = ["--data", "digits", "--limit", 60, "--epochs", 3, "--out", tmp_path / "run"]
    done = deepclust("train", "byol", *options, *tiny, "--compile")
    assert done.code == 2 and not done.crash
    assert "compile" in done.last and "--no-compile" in done.last and done.last.count("\n") == 1


# Nothing waits for the device


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: DEEPCLUST_DEVICE=cuda")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", [n for n in LEARNING if n not in WAITS])
def test_no_step_waits_for_the_device(images, name, precision):
    more = {"period": 0} if name == "digpro" else {}
    run = started(name, images, Speed(precision, True, False), **more)
    batches = list(run.data.batches(run.bs))

    def steps():
        for what in run.method.passes(run):
            for idx, x in batches:
                run.at(0.5)
                train_step(run, what, idx, x)

    steps()  # the first draws the epoch's random numbers and lets cuDNN choose
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: DEEPCLUST_DEVICE=cuda")
def test_a_wait_would_be_noticed(images):
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):
            images.x.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: DEEPCLUST_DEVICE=cuda")
def test_a_gpu_computes_in_bf16_unless_told_otherwise(images):
    plan = train.make_plan("byol", images, k=4, device=DEVICE)
    assert train.settled(plan).recipe.precision == "bf16"
    told = replace(plan, recipe=replace(plan.recipe, precision="float32"))
    assert train.settled(told).recipe.precision == "float32"
