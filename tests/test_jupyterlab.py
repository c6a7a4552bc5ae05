"""Lessons in JupyterLab, in a real browser: each runs top to bottom, and its widgets answer to the keyboard and the mouse."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.error import URLError

import pytest

from conftest import ROOT

LESSONS = [
    "foundations/08_widgets",
    *sorted(f"methods/{file.stem}" for file in (ROOT / "nbs" / "methods").glob("*.ipynb")),
]
WIDGET = "application/vnd.jupyter.widget-view+json"
SLIDERS = [name for name in LESSONS if not name.endswith(("pretext", "frozen"))]
READY = """async () => {
    const panel = window.jupyterapp?.shell.currentWidget;
    if (!panel?.context || !panel?.sessionContext) return false;
    await panel.context.ready;
    await panel.sessionContext.ready;
    return panel.sessionContext.session?.kernel?.status === "idle";
}"""
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = """() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells, cell => {
    const {cell_type, source, outputs = [], execution_count = null} = cell.toJSON();
    return {cell_type, source: [source].flat().join(""), outputs, execution_count};
})"""
SHOW = """i => {
    const {content} = window.jupyterapp.shell.currentWidget;
    content.activeCellIndex = i;
    return content.scrollToItem(i, "start");
}"""


def free_port() -> int:
    "A port that nobody listens to."
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    "JupyterLab over a copy of the lessons: its address, as it is opened."
    place, port, token = tmp_path_factory.mktemp("lab"), free_port(), secrets.token_hex(16)
    for folder in ("nbs", "results"):
        shutil.copytree(ROOT / folder, place / folder)
    options = (
        f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token={token}"
    )
    options += " --LabApp.expose_app_in_browser=True --ServerApp.log_level=ERROR"
    options += (
        " --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    )
    env = os.environ | {f"JUPYTER_{name}_DIR": str(place / name) for name in ("CONFIG", "RUNTIME")}
    env |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": ""}
    log = (place / "log").open("w")
    command = [sys.executable, "-m", "jupyterlab", *options.split(), str(place / "nbs")]
    server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=place)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        assert server.poll() is None and time.monotonic() < end, (place / "log").read_text()
        try:
            urllib.request.urlopen(f"{url}/api?token={token}", timeout=5).close()
            break
        except (URLError, OSError):
            time.sleep(0.5)
    yield lambda name: f"{url}/lab/tree/{name}.ipynb?token={token}&reset"
    server.terminate()
    server.wait(30)
    log.close()


@pytest.fixture(scope="module", params=LESSONS)
def lesson(request, lab, browser):
    "A lesson that has run top to bottom in JupyterLab."
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(lab(request.param))
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context")
    end = time.monotonic() + 120
    while not page.evaluate(READY):
        assert time.monotonic() < end, "the kernel does not start"
        page.wait_for_timeout(300)
    begin = time.monotonic()
    page.evaluate(RUN)
    page.name, page.seconds = request.param, time.monotonic() - begin
    yield page
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


def cell_at(page, i: int):
    "A cell, scrolled into view with what it shows."
    page.evaluate(SHOW, i)
    cell = page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{i}']")
    cell.locator("figure img").first.wait_for()
    return cell


def widgets_in(page) -> list[int]:
    "Positions of the cells that show a widget."
    cells = page.evaluate(CELLS)
    return [
        i
        for i, cell in enumerate(cells)
        if any(WIDGET in o.get("data", {}) for o in cell["outputs"])
    ]


def test_runs_top_to_bottom_without_an_error(lesson, record_property):
    record_property("measured", f"{lesson.name}: {lesson.seconds:.0f} s in JupyterLab")
    cells = lesson.evaluate(CELLS)
    broken = [
        (i, output["ename"], output["evalue"])
        for i, cell in enumerate(cells)
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
    assert not broken
    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"].strip()]
    assert code and all(cell["execution_count"] for cell in code)


@pytest.mark.parametrize("lesson", SLIDERS, indirect=True)
def test_every_slider_is_moved_by_keyboard_and_its_picture_changes(lesson, record_property):
    from playwright.sync_api import expect

    assert widgets_in(lesson)
    for i in widgets_in(lesson):
        cell = cell_at(lesson, i)
        picture = cell.locator("figure img").first
        for handle in cell.locator(".noUi-handle").all():
            before = picture.get_attribute("src")
            handle.focus()
            at = handle.get_attribute("aria-valuenow")
            last = at == handle.get_attribute("aria-valuemax")
            for _ in range(3):  # a single small step may change less than a pixel
                handle.press("ArrowLeft" if last else "ArrowRight")
            expect(picture).not_to_have_attribute("src", before, timeout=60_000)
        said = cell.locator("figcaption").first.inner_text()
        record_property("measured", f"{lesson.name}, widget of cell {i}: {said}")


@pytest.mark.parametrize("lesson", LESSONS[:1], indirect=True)
def test_a_click_on_the_map_shows_another_image(lesson):
    from playwright.sync_api import expect

    charts = "canvas.jupyter-widgets, .jupyter-matplotlib-canvas-container canvas"
    cells = (cell_at(lesson, i) for i in widgets_in(lesson))
    cell = next(cell for cell in cells if cell.locator(charts).count())
    picture, chart = cell.locator("figure img").first, cell.locator(charts).last
    alt, box = picture.get_attribute("alt"), chart.bounding_box()
    chart.click(position={"x": box["width"] * 0.3, "y": box["height"] * 0.6})
    expect(picture).not_to_have_attribute("alt", alt, timeout=60_000)
