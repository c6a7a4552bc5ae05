"Shapes and types in signatures hold while the library trains, stops, resumes, evaluates and predicts."

import os
import subprocess
import sys

from conftest import DEVICE, ROOT

PROGRAM = """
import sys
from jaxtyping import install_import_hook
with install_import_hook("deepclust_nb", "typechecker.checked"):
    from deepclust_nb import baselines, cli, train  # train imports everything else

def call(*args):
    try:
        cli.main([*args, "--device", "{device}"])
    except SystemExit as end:
        assert not end.code, args

tiny = ["--data", "digits", "--profile", "ci", "--limit", "150", "--epochs", "3", "--quiet"]
tiny += ["--set", "width=4", "--set", "rotation=True"]
call("train", "mmdc", *tiny, "--out", "a", "--stop-after", "1")
call("train", "mmdc", *tiny, "--out", "a", "--resume")
call("train", "nat", *tiny, "--out", "b")
call("train", "mmdc", *tiny, "--out", "c", "--set", "var=0.1", "--set", "means=random", "--init", "rotnet")
small = [*tiny[:8], "--quiet", "--set", "width=4"]
call("train", "lsdc", *small, "--out", "d", "--set", "train_last=1", "--set", "fixed_norms=true")
for i, rule in enumerate(("l2", "cosine", "sne")):
    ways = ["--set", f"rule={rule}", "--set", "mixing=" + ("ricap", "mixup", "none")[i]]
    ways += ["--set", "space=" + ("predictions", "features", "features")[i]]
    call("train", "lsdc", *small, "--out", f"e{i}", "--init", "d", *ways)
for i, way in enumerate(("judge=head", "refresh=epoch", "warm_epochs=1", "centre=false", "even=1")):
    ways = ["--set", way, "--set", "balance=" + ("sinkhorn", "none")[i % 2]]
    call("train", "scl", *small, "--out", f"f{i}", "--init", "d" if i == 0 else "random", *ways)
call("train", "moco", *small, "--out", "g")
call("train", "byol", *small, "--out", "h", "--set", "decay=weights")
for i, way in enumerate(("soft=0.1", "around=unit", "queue=64", "balanced=true", "absent=-10", "divisor=all", "quiet=0")):
    call("train", "ncc", *small, "--out", f"i{i}", "--set", "warmup=0", "--set", way)
group = ("anchor=projector", "judge=trained", "against=old", "length=raw", "pace=epoch", "copy=true")
for i, way in enumerate((*group, "read=groups", "start=orthant", "groups=5", "period=0", "slots=33")):
    call("train", "digpro", *small, "--out", f"j{i}", "--set", "period=1", "--set", way)
call("evaluate", "a", "--probe")
baselines.classical(train.limited(train.load_data("digits"), 150), progress=False)
call("train", "rotnet", *small, "--out", "k", "--precision", "bf16", "--set", "accumulate=2")
call("train", "moco", *small, "--out", "l", "--channels-first", "--set", "accumulate=3")
train.export_run("a", "a.pt")
call("evaluate", "a.pt")
call("train", "lsdc", *small, "--out", "m", "--init", "a.pt", "--precision", "bf16")
call("bench", "mmdc", "--width", "4", "--side", "16", "--bs", "8", "--times", "1")
"""


def test_signatures_hold(tmp_path):
    "jaxtyping and beartype check every call of a few small runs."
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    program = [sys.executable, "-c", PROGRAM.replace("{device}", DEVICE)]
    run = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def test_the_checker_checks(tmp_path):
    "A wrong shape is noticed; without this the test above could pass by checking nothing."
    program = PROGRAM.split("def call")[0] + (
        "import torch\nfrom deepclust_nb.methods.mmdc import mse\nmse(torch.zeros(2, 3), torch.zeros(2, 4))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 1 and "TypeCheckError" in run.stderr, run.stderr[-3000:]
