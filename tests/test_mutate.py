"""The mistakes that `tools/mutate.py` makes, and whether it tells a good test from a missing one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import mutants

ROOT = Path(__file__).resolve().parent.parent

LOSS = """#| export
def pull(
    z: Float[Tensor, "B D"],  # Rows
    q: Float[Tensor, "B D"],  # Targets, no gradient
):
    "Mean squared distance of unit rows to their targets."
    if len(z) < 1:
        raise ValueError(f"{len(z) - 1} rows")
    return (unit(z) - q.detach()).square().sum(dim=1).mean()
"""


def changes(source: str) -> set[str]:
    "The last line of every mutant, stripped."
    return {edit.apply(source).strip().splitlines()[-1].strip() for edit in mutants(source)}


def line(statement: str) -> set[str]:
    "Mutants of one statement inside a function."
    return changes(f"def f(x, q, k):\n    {statement}\n")


def test_a_loss_gets_the_mistakes_one_would_make():
    found = changes(LOSS)
    for wrong in (
        "return (unit(z) + q.detach()).square().sum(dim=1).mean()",
        "return (z - q.detach()).square().sum(dim=1).mean()",
        "return (unit(z) - q).square().sum(dim=1).mean()",
        "return (unit(z) - q.detach()).sum(dim=1).mean()",
        "return (unit(z) - q.detach()).square().sum(dim=0).mean()",
        "return (unit(z) - q.detach()).square().sum(dim=1).sum()",
        "return (unit(z) - q.detach()).square().mean(dim=1).mean()",
    ):
        assert wrong in found
    edits = list(mutants(LOSS))
    assert any("len(z) >= 1" in edit.apply(LOSS) for edit in edits)
    assert all('f"{len(z) - 1} rows"' in edit.apply(LOSS) for edit in edits)  # Messages stay
    assert all('"B D"' in edit.apply(LOSS) and edit.function == "pull" for edit in edits)


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("return -x", "return x"),
        ("return x.sum(-1)", "return x.sum(0)"),
        ("return x.argmax(1)", "return x.argmin(1)"),
        ("return x ** 2", "return x * 2"),
        ("return x / 2", "return x / 3"),
        ("return F.normalize(x + q, dim=1)", "return (x + q)"),
        ("return linear_sum_assignment(x)", "return linear_sum_assignment(x, maximize=True)"),
        (
            "return linear_sum_assignment(x, maximize=True)",
            "return linear_sum_assignment(x, maximize=False)",
        ),
        ("return x.topk(k)", "return x.topk(k, largest=False)"),
        ("return x if k else q", "return x if not (k) else q"),
        ("return x is None", "return x is not None"),
        ("x += q", "x -= q"),
        ("return min(x, q)", "return max(x, q)"),
    ],
)
def test_each_kind_of_mistake(statement, wrong):
    assert wrong in line(statement)


def test_gradient_switches_are_dropped():
    source = "def f(net, x):\n    with evaluating(net) as quiet:\n        return quiet(x)\n"
    assert any("nullcontext(net) as quiet" in edit.apply(source) for edit in mutants(source))
    source = "@torch.no_grad()\ndef f(x):\n    return x\n"
    assert [edit.apply(source).splitlines()[0] for edit in mutants(source)] == ["@(lambda f: f)"]


@pytest.mark.parametrize(
    "statement",
    [
        "x.flatten(-2)",
        "x[:-1]",
        "x: int = 3",
        "print(x + 1)",
        "raise ValueError(x - 1)",
        "'a' + x",
        "plt.show()",
    ],
)
def test_what_is_left_alone(statement):
    assert line(statement) == set()


def notebook(path: Path, *cells: str) -> Path:
    "A notebook file with code cells."
    made = [
        {
            "cell_type": "code",
            "id": f"c{n}",
            "metadata": {},
            "source": c,
            "outputs": [],
            "execution_count": None,
        }
        for n, c in enumerate(cells)
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


IMPORTS = "#| export\nimport torch\nfrom torch.nn import functional as F"
LIKENESS = """#| export
def likeness(a, b):
    "Cosine of rows; no gradient into `b`."
    return (F.normalize(a, dim=1) * F.normalize(b.detach(), dim=1)).sum(dim=1)
"""
WEAK = "torch.manual_seed(0)\na = torch.randn(4, 3, requires_grad=True)\nassert likeness(a, a).shape == (4,)"
STRONG = """%matplotlib inline
b = torch.randn(4, 3, requires_grad=True)
c = likeness(a, b)
c.sum().backward()
assert b.grad is None and a.grad is not None
assert torch.allclose(c, F.cosine_similarity(a, b))"""


def mutate(path: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "mutate.py"), str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_a_good_test_kills_and_a_missing_one_lets_live(tmp_path):
    good = mutate(notebook(tmp_path / "good.ipynb", IMPORTS, LIKENESS, WEAK, STRONG))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "SURVIVED" not in good.stdout and "killed 8 / total 8 (100.0 %)" in good.stdout

    weak = mutate(notebook(tmp_path / "weak.ipynb", IMPORTS, LIKENESS, WEAK))
    assert weak.returncode == 1
    assert "SURVIVED: weak.ipynb cell 1 line 4, likeness" in weak.stdout
    assert "+    return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(dim=1)" in weak.stdout


def test_equivalent_ones_are_not_counted_and_old_ones_are_named(tmp_path):
    source = "#| export\ndef f(x):\n    return x / 1\n"
    path = notebook(tmp_path / "n.ipynb", source, "assert f(2) == 2")
    listed = tmp_path / "equivalent.json"
    key = "n.ipynb | f | return x / 1 => return x * 1"
    listed.write_text(json.dumps({key: "dividing by one is multiplying by one"}))
    run = mutate(path, "--equivalent", str(listed))
    assert run.returncode == 0 and "killed 1 / total 1 (100.0 %), 1 equivalent" in run.stdout
    listed.write_text(json.dumps({key: "as above", "n.ipynb | f | return 1 => return 2": "gone"}))
    run = mutate(path, "--equivalent", str(listed))
    assert run.returncode == 1 and "no longer in the code" in run.stdout


def test_a_mistake_that_never_ends_is_killed(tmp_path):
    source = (
        "#| export\ndef count(n):\n    k = 0\n    while k != n:\n        k += 1\n    return k\n"
    )
    run = mutate(notebook(tmp_path / "n.ipynb", source, "assert count(3) == 3"), "--verbose")
    assert "killed 3 / total 3" in run.stdout and "    time" in run.stdout


def test_a_notebook_that_fails_by_itself_is_said(tmp_path):
    run = mutate(
        notebook(tmp_path / "n.ipynb", "#| export\ndef f(x):\n    return -x\n", "assert f(1) == 1")
    )
    assert run.returncode == 1 and "does not pass as it is" in run.stdout
