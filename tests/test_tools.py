"""The checks themselves: each must see the mistake it is there for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import check
import docs
import forks
import imports
import notebooks
import readme
import sizes
import sync
from notebooks import Cell, front_matter, read

ROOT = Path(__file__).resolve().parent.parent


# Notebooks


def code(source: str, *outputs: dict, tags=()) -> dict:
    return {
        "cell_type": "code",
        "id": f"c{abs(hash(source)) % 10**8}",
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source.splitlines(keepends=True),
        "outputs": list(outputs),
        "execution_count": None,
    }


def text(source: str, kind: str = "markdown") -> dict:
    return {"cell_type": kind, "id": "t", "metadata": {}, "source": source}


def printed(line: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": [line]}


def notebook(path: Path, *cells: dict) -> Path:
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def test_cells_are_read_with_directives_and_tags(tmp_path):
    path = notebook(
        tmp_path / "n.ipynb",
        text("---\nskip_exec: true\n---", "raw"),
        code("#| export\n#| slow\nx = 1", tags=["training"]),
        code("# | eval: false\nx"),
    )
    raw, first, second = read(path)
    assert front_matter([raw]) == {"skip_exec": True}
    assert first.exported and first.skipped and first.tags == ("training",)
    assert not second.exported and second.skipped
    assert front_matter([Cell(0, "markdown", "# Title\n\n- skip_exec: true\n")]) == {
        "skip_exec": True
    }


# Forks


def job(name: str) -> bool:
    print("this is", name)
    if name == "raises":
        raise ValueError("on purpose")
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "sleeps":
        time.sleep(60)
    return name == "good"


def test_forks_tell_how_each_call_ended():
    names = ["good", "false", "raises", "dies", "sleeps"]
    outcomes = {o.job: o for o in forks.run(job, names, workers=2, limit=1.5)}
    assert [outcomes[name].ok for name in names] == [True, False, False, False, False]
    assert "on purpose" in outcomes["raises"].text and "signal" in outcomes["dies"].text
    assert outcomes["sleeps"].timed_out and outcomes["sleeps"].seconds < 10
    assert "this is good" in outcomes["good"].text


# Import direction


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("core", "from .data import load_data", "core may not import data"),
        ("data", "from .augment import Augment", "data may not import augment"),
        ("engine", "from .methods.mmdc import MMDC", "engine may not import methods.mmdc"),
        ("methods/mmdc", "from ..train import train", "methods.mmdc may not import train"),
        ("methods/mmdc", "from .lsdc import LSDC", "methods.mmdc may not import methods.lsdc"),
        ("methods/mmdc", "from deepclust_nb.cli import main", "methods.mmdc may not import cli"),
        ("train", "from . import cli", "train may not import cli"),
        ("viz", "import umap", "inside the function"),
        ("viz", "from IPython.display import display", "inside the function"),
        ("core", "def f():\n    import fastcore.all", "notebook tool"),
        ("core", "from math import *", "star import"),
        ("utils", "import torch", "no place in LEVELS"),
    ],
)
def test_wrong_imports_are_named(tmp_path, module, line, message):
    path = tmp_path / "deepclust_nb" / f"{module}.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    found = imports.check(tmp_path / "deepclust_nb")
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("engine", "from .core import check_k\nfrom .cluster import kmeans"),
        ("methods/mmdc", "from .pretext import rotate\nfrom ..engine import Method"),
        ("methods/digpro", "from .ncc import NCC\nfrom .byol import BYOL"),
        ("cli", "from .train import train\nfrom . import __version__\nimport click"),
        ("viz", "def f():\n    import umap\n    from IPython.display import display"),
    ],
)
def test_right_imports_pass(tmp_path, module, line):
    path = tmp_path / "deepclust_nb" / f"{module}.py"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert imports.check(tmp_path / "deepclust_nb") == []


# Sizes

LONG = "".join(f"    x = x + {n}\n" for n in range(31))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (code(f"#| export\ndef f(x):\n    'Adds.'\n{LONG}"), "f has 31 lines"),
        (code("".join(f"x = {n}\n" for n in range(31))), "cell has 31 lines"),
        (code("#| export\ndef f(x):\n    return x"), "f: no docstring"),
        (
            code("#| export\nclass A:\n    'A.'\n    def g(self):\n        return 1"),
            "g: no docstring",
        ),
        (
            code("#| export\ndef f(weight):\n    'Does it.'\n    return weight"),
            "no comment at parameter weight",
        ),
        (code("x = 1\nx"), "no stored output"),
        (code("print(1)"), "no stored output"),
        (code("f()", printed("saved /home/ada/runs/demo")), "absolute path"),
        (code("f()", printed("<object at 0x7f3a5c01d2b0>")), "memory address"),
        (code("f()", printed("done in 3.2 s")), "time"),
        (
            code("f()", {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}),
            "an error",
        ),
        (code("import torch\nx = 1"), "imports and code"),
    ],
)
def test_what_is_too_long_or_not_reviewable_is_named(tmp_path, cell, message):
    found = sizes.check_notebook(notebook(tmp_path / "n.ipynb", cell))
    assert len(found) >= 1 and any(message in problem for problem in found)


@pytest.mark.parametrize(
    "cell",
    [
        code(f"#| export\n# long: a table of cases\ndef f(x):\n    'Adds.'\n{LONG}"),
        code(
            "#| export\ndef f(\n    weight,  # Between 0 and 1\n):\n    'Does it.'\n    return weight"
        ),
        code("#| export\ndef _f(weight):\n    return weight"),
        code("TABLE = {\n" + "".join(f"    {n}: {n},\n" for n in range(40)) + "}"),
        code("#| gpu\nprint(1)"),
        code("1 + 1", printed("accuracy 0.953, loss 0.12")),
        code("import torch\nfrom torch import nn"),
    ],
)
def test_what_is_in_order_passes(tmp_path, cell):
    assert sizes.check_notebook(notebook(tmp_path / "n.ipynb", cell)) == []


def test_signatures_and_docstrings_are_free():
    source = 'def f(\n    a,\n    b,\n):\n    """Long\n    words."""\n    # why\n\n    if a:\n        return b\n    return a\n'
    (name, node), *_ = sizes.functions(Cell(0, "code", source).tree)
    assert name == "f" and sizes.body_length(node) == 3


# Notebooks and what comes from them


def test_modules_without_their_notebook_are_named(tmp_path, monkeypatch):
    package = tmp_path / "deepclust_nb"
    package.mkdir()
    (tmp_path / "00_core.ipynb").write_text("{}")
    (package / "core.py").write_text(
        "# AUTOGENERATED! DO NOT EDIT! File to edit: ../00_core.ipynb.\n"
    )
    (package / "old.py").write_text(
        "# AUTOGENERATED! DO NOT EDIT! File to edit: ../01_old.ipynb.\n"
    )
    monkeypatch.setattr(sync, "PACKAGE", package)
    monkeypatch.setattr(sync, "ROOT", tmp_path)
    assert sync.orphans() == [
        "deepclust_nb/old.py: its notebook ../01_old.ipynb is gone; delete it"
    ]


def test_sidebar_and_notebooks_are_compared(tmp_path, monkeypatch):
    nbs = tmp_path / "nbs"
    nbs.mkdir()
    for name in ("a", "b"):
        notebook(nbs / f"{name}.ipynb", code("1"))
    (tmp_path / "_quarto.yml").write_text(
        "website: {sidebar: {contents: [a.ipynb, c.ipynb, a.ipynb]}}"
    )
    for module, name, value in (
        (docs, "ROOT", tmp_path),
        (docs, "NBS", nbs),
        (notebooks, "NBS", nbs),
    ):
        monkeypatch.setattr(module, name, value)
    assert docs.check_sidebar() == [
        "sidebar: c.ipynb is not there",
        "sidebar: b.ipynb is left out",
        "sidebar: a.ipynb comes twice",
    ]


def test_unknown_directives_are_named(tmp_path, monkeypatch):
    notebook(
        tmp_path / "a.ipynb", code("#| exprot\nx"), code("#| fig-cap: a picture\n#| eval: false\nx")
    )
    monkeypatch.setattr(docs, "NBS", tmp_path)
    assert docs.check_directives() == ["a.ipynb cell 0: unknown directive exprot"]


def test_what_a_processed_page_would_show_by_mistake_is_named(tmp_path, monkeypatch):
    page = tmp_path / "_proc" / "a.ipynb"
    page.parent.mkdir()
    error = {"output_type": "error", "ename": "OhNo", "evalue": "", "traceback": []}
    notebook(page, code("#| echo: false\nx"), code("x\n#| export\ny"), code("x", error))
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.check_pages() == [
        "_proc/a.ipynb cell 1: shows the directive export",
        "_proc/a.ipynb cell 2: shows OhNo",
    ]


def test_links_to_sections_are_followed(tmp_path, monkeypatch):
    notebook(tmp_path / "a.ipynb", text("# One, two: `x`!\n\n## Own {#mine}"))
    words = "[a](a.ipynb#one-two-x) [b](a.ipynb#mine) [c](a.ipynb#gone) [d](#here) [e](#gone)"
    notebook(tmp_path / "b.ipynb", text("# Here\n" + words))
    monkeypatch.setattr(docs, "NBS", tmp_path)
    assert docs.check_anchors() == [
        "b.ipynb cell 0: no section a.ipynb#gone",
        "b.ipynb cell 0: no section #gone",
    ]


PNG = {"output_type": "display_data", "data": {"image/png": "iVBORw0K"}}


def framed(html: str) -> dict:
    return {"output_type": "display_data", "data": {"text/html": [html]}}


def test_pictures_need_a_text_of_their_own(tmp_path, monkeypatch):
    said = '#| fig-alt: "Left: two heaps of points, right: one."'
    notebook(
        tmp_path / "a.ipynb",
        code(f"#| slow\n{said}\nf()", PNG),
        code("#| hide\nf()", PNG),
        code("#| output: false\nf()", PNG),
        code("1", printed("1")),
        code("g()", framed('<img alt="one heap" src="a.png">')),
        code("f()", PNG),
        code(f"x = 1\n{said}", PNG),
        code("#| fig-alt: Left: two heaps\nf()", PNG),
        code("#| fig-alt: 12345678901234567890\nf()", PNG),
        code("g()", framed('<img alt="one heap"><img src="b.png">')),
        code("#| fig-alt: one heap\nf()", PNG),
        code(f"#| fig-alt: {'heap ' * 80}\nf()", PNG),
        code(f"{said}\ng()", PNG),
    )
    monkeypatch.setattr(docs, "NBS", tmp_path)
    found = [line.removeprefix("a.ipynb cell ").split(": ", 1) for line in docs.check_alt_texts()]
    assert [int(n) for n, _ in found] == [5, 6, 7, 8, 9, 10, 11, 12]
    assert all("above the code" in words for _, words in found[:5])
    assert [words for _, words in found[5:]] == [
        "fig-alt has 8 characters, not 20 to 300",
        "fig-alt has 399 characters, not 20 to 300",
        "fig-alt is that of another picture",
    ]


# Links and README


def test_dead_links_are_found(tmp_path):
    (tmp_path / "there.md").write_text("")
    words = "[a](there.md#part) [b](gone.md) ![c](https://x.org/y.png) [d](#e) `[f](code.md)` [g](<gone 2>)"
    assert docs.dead(words, tmp_path) == ["gone.md"]
    assert docs.dead('<img src="gone.png">', tmp_path) == ["gone.png"]
    assert docs.dead("![](attachment:a.png) ![](attachment:b.png)", tmp_path, ("a.png",)) == [
        "attachment:b.png"
    ]


def test_readme_moves_links_and_leaves_out_hidden_cells(tmp_path):
    path = notebook(
        tmp_path / "index.ipynb",
        text("---\ntitle: x\n---", "raw"),
        text(
            "# Name\n\n[lesson](methods/a.ipynb) [top](../LICENSE) [out](https://x.org) ![](images/p.png)"
        ),
        code("#| hide\nimport torch"),
        code("#| echo: false\nprint(1)", printed("1\n")),
        code("1 + 1", PNG),
        code('#| fig-alt: "two heaps"\nplot()', PNG),
    )
    files = readme.render(read(path))
    page = files[readme.README].decode()
    assert page.startswith(
        "# Name\n\n[lesson](nbs/methods/a.ipynb) [top](LICENSE) [out](https://x.org)"
    )
    assert "![](nbs/images/p.png)" in page and readme.NOTE in page
    assert "torch" not in page and "print" not in page and "    1\n" in page
    assert "```python\n1 + 1\n```\n\n![](README_files/cell-4-0.png)" in page
    assert "```python\nplot()\n```\n\n![two heaps](README_files/cell-5-0.png)" in page
    assert files[ROOT / "README_files/cell-4-0.png"] == b"\x89PNG\r\n"


# The runner


def step(name: str) -> check.Step:
    return next(s for s in check.STEPS if s.name == name)


def test_counts_are_those_of_the_step():
    assert check.count(step("lint"), 0, "") == (1, 0, 0)
    assert check.count(step("lint"), 1, "") == (0, 1, 0)
    assert check.count(step("lessons"), 1, "...\n11 passed, 2 failed\n") == (11, 2, 0)
    assert check.count(step("lessons"), 1, "11 passed, 0 failed\n") == (
        11,
        1,
        0,
    )  # Crashed after counting
    assert check.count(step("training"), 0, "0 passed, 0 failed\n") == (0, 0, 0)


def test_counts_of_pytest_come_from_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LOGS", tmp_path)
    suite = '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="1"/></testsuites>'
    (tmp_path / "pytest.xml").write_text(suite)
    assert check.count(step("pytest"), 1, "") == (5, 3, 1)


def test_what_failed_is_said_before_everything_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "LOGS", tmp_path)
    case = '<testcase classname="tests.a" name="b"><failure message="oh&#10;no"/></testcase>'
    (tmp_path / "pytest.xml").write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    check.report(check.Result(step("pytest"), 0, 1, 0, 1.0, "..s.F [ 50%]\nend"))
    assert capsys.readouterr().out.splitlines()[1:] == ["    | tests.a::b: oh", "    | end"]


def test_what_tests_measure_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LOGS", tmp_path)
    assert check.measured() == []
    case = '<testcase><properties><property name="measured" value="9 ms"/></properties></testcase>'
    (tmp_path / "pytest.xml").write_text(f"<testsuites>{case}</testsuites>")
    assert check.measured() == ["9 ms"]


def test_a_step_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LOGS", tmp_path)
    monkeypatch.setattr(check, "LIMIT", 0.5)
    result = check.run(check.Step("slow", "sleeps", "sleep 60 && true"))
    assert (result.passed, result.failed) == (0, 1) and "stopped after" in result.output
    assert result.seconds < 10


def test_runner_lists_its_steps_and_refuses_unknown_ones():
    run = [sys.executable, str(ROOT / "tools" / "check.py")]
    listed = subprocess.run([*run, "--list"], capture_output=True, text=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [s.name for s in check.STEPS]
    refused = subprocess.run([*run, "--only", "nothing"], capture_output=True, text=True)
    assert refused.returncode == 1 and "no step nothing" in refused.stderr


def test_last_line_counts_passed_and_failed(tmp_path, monkeypatch, capsys):
    steps = [check.Step("good", "works", "true"), check.Step("bad", "fails", "echo oh no && false")]
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(check, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    output = capsys.readouterr().out
    assert output.rstrip().splitlines()[-1] == "1 passed, 1 failed" and "oh no" in output
    assert (tmp_path / "logs" / "summary.txt").read_text() == "1 passed, 1 failed\n"


def test_ci_runs_make_test():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and os.access(ROOT / ".ci" / "run", os.X_OK)
