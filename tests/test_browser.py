"""The gallery in a real browser: it opens without network, is edited by keyboard, and runs nothing but its own script."""

import json
import time
from collections import Counter

import numpy as np
import pytest

from conftest import crops

HOSTILE = (
    "<img src=x onerror=window.hit=1>.png",
    "</script><script>window.hit=1</script>",
    "photo\u202egnp.exe",
    "\"><svg onload='window.hit=1'>",
    "{{ 7 * 7 }} & ${7 * 7}",
)


@pytest.fixture
def visit(browser):
    "Open a file; the page remembers in `said` what went to the console and in `asked` what it fetched."
    contexts = []

    def visit(file, **options):
        options = {"viewport": {"width": 1100, "height": 800}, "reduced_motion": "reduce"} | options
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()


def outside(page) -> list[str]:
    "What a page fetched that is not within itself."
    return [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture(scope="module")
def make_page(tmp_path_factory, digits):
    "A gallery of some digits without a training run."
    from deepclust_nb.gallery import write_gallery

    def make(n=120, k=4, x=None, names=None, **more):
        rng = np.random.default_rng(0)
        x = digits[:n, None] if x is None else x
        names = names or [f"scan {i}.png" for i in range(n)]
        view = {"rows": np.arange(min(n, 2000)), "xy": rng.random((min(n, 2000), 2))}
        options = {"features": rng.random((n, 4)), "view": view, "health": []} | more
        summary = {"method": "ncc", "data": "digits", "k": k} | options.pop("summary", {})
        file = tmp_path_factory.mktemp("page") / "gallery.html"
        assign, sure = np.arange(n) % k, rng.random(n)
        return write_gallery(file, x, assign, sure, names, summary, **options)

    return make


@pytest.fixture(scope="module")
def plain_page(make_page):
    return make_page()


def tab_to(page, css: str, most: int = 60) -> None:
    "Press Tab until something that matches has the focus."
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("css => document.activeElement.matches(css)", css):
            return
    raise AssertionError(f"Tab does not reach {css}")


def skip_to(page, css: str) -> None:
    "Put the focus there, as following a link does."
    page.locator(css).first.focus()


def edits_of(page) -> list[str]:
    "The list of edits as it is read."
    page.locator("#list").evaluate("list => list.closest('details').open = true")
    texts = page.locator("#list li").all_inner_texts()
    return [
        text.replace("\u2068", "").replace("\u2069", "").removesuffix("Undo").strip()
        for text in texts
    ]


def saved(page, tmp_path):
    "What the button for saving writes, pressed by keyboard."
    with page.expect_download() as download:
        skip_to(page, "#save")
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "edits.json"
    download.value.save_as(tmp_path / "edits.json")
    return json.loads((tmp_path / "edits.json").read_text(encoding="utf-8"))


def test_a_run_opens_without_network_and_without_complaint(visit, photo_run):
    page = visit(photo_run / "gallery.html")
    page.wait_for_selector("#edits")
    page.mouse.wheel(0, 20_000)
    page.wait_for_timeout(200)
    assert not page.said and not outside(page)
    assert page.locator("section[data-cluster]").count() == 4
    assert page.locator(".panel").count() == 4


def test_pictures_are_decoded_when_they_come_into_view(visit, make_page):
    page = visit(make_page(n=600, k=30))
    pictures = page.locator(".thumbs img")
    lazy = pictures.evaluate_all(
        "all => all.every(i => i.loading === 'lazy' && i.decoding === 'async')"
    )
    assert lazy and pictures.count() > 500
    ready = "all => all.filter(i => i.complete && i.naturalWidth > 0).length"
    assert pictures.evaluate_all(ready) < pictures.count() / 2
    pictures.last.scroll_into_view_if_needed()
    assert pictures.last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


def test_everything_is_shown_without_javascript(visit, plain_page):
    page = visit(plain_page, java_script_enabled=False)
    assert page.locator("section.cluster").count() == 4
    assert (
        page.locator(".thumbs img").count() == page.locator("section.cluster li img").count() > 100
    )
    assert page.locator(".map circle:visible").count() > 100
    assert not page.locator("button:visible").count() and not page.locator("#edits:visible").count()


def test_edits_by_keyboard_alone(visit, plain_page, tmp_path):
    page = visit(plain_page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")  # the skip link leads past the overview and the map
    tab_to(page, "#cluster-0 .panel summary")
    page.keyboard.press("Enter")
    tab_to(page, "#cluster-0 [name=name]", 2)
    page.keyboard.type("zeros")
    page.keyboard.press("Enter")
    assert page.locator("#cluster-0 h3").inner_text() == "zeros"
    assert "called" in page.locator("#status").inner_text()
    tab_to(page, "#cluster-0 [name=parts]", 5)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert "split into 3 parts" in page.locator("#status").inner_text()
    tab_to(page, "#cluster-0 .out", 3)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    out = page.locator("#cluster-0 .thumbs li").nth(2)
    assert out.locator("button").get_attribute("aria-pressed") == "true"
    skip_to(page, "#cluster-2 .panel summary")
    page.keyboard.press("Enter")
    tab_to(page, "#cluster-2 select", 4)
    choices = page.locator("#cluster-2 option").all_inner_texts()
    assert choices == ["choose a cluster", "Cluster 1", "Cluster 3"]  # not one that is to be split
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    tab_to(page, "#cluster-2 [data-do=merge]", 1)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "title-2"
    assert (
        page.locator("#cluster-2 .note").inner_text().strip("\u2068\u2069.").startswith("Goes into")
    )
    told = saved(page, tmp_path)
    image = int(out.get_attribute("data-image"))
    assert told["format"] == "deepclust edits" and told["version"] == 1 and len(told["run"]) == 32
    assert told["edits"] == [
        {"do": "rename", "cluster": 0, "name": "zeros"},
        {"do": "split", "cluster": 0, "parts": 3},
        {"do": "drop", "image": image},
        {"do": "merge", "cluster": 2, "into": 3},
    ]
    assert not page.said and not outside(page)


def test_edits_are_undone_and_refused(visit, plain_page, make_page):
    page = visit(plain_page)
    for number, into in ((1, 0), (2, 1)):
        page.locator(f"#cluster-{number} .panel summary").click()
        page.locator(f"#cluster-{number} [data-do=merge]").click()
        assert "Choose" in page.locator("#status").inner_text()
        if number == 1:
            page.locator("#cluster-1 select").select_option(str(into))
            page.locator("#cluster-1 [data-do=merge]").click()
    assert page.locator("#cluster-2 option").all_inner_texts() == [
        "choose a cluster",
        "Cluster 0",
        "Cluster 3",
    ]
    page.locator("#cluster-2 [name=parts]").fill("99")
    page.locator("#cluster-2 [data-do=split]").click()
    assert "2 to 20" in page.locator("#status").inner_text()
    page.locator("#cluster-2 [data-do=rename]").click()
    assert "name" in page.locator("#status").inner_text()
    page.locator("#cluster-3 .out").first.click()
    assert edits_of(page)[0] == "Cluster 1 goes into Cluster 0" and len(edits_of(page)) == 2
    page.locator("#list button").first.click()
    assert len(edits_of(page)) == 1 and page.locator("#cluster-1 .thumbs").first.is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Undo: ")
    page.locator("#cluster-3 .out").first.click()
    assert not edits_of(page) and page.locator("#save").is_disabled()
    assert not page.said


def test_edits_outlive_the_page_but_not_the_clustering(visit, make_page):
    mine, other = make_page(n=100), make_page(n=101)
    page = visit(mine)
    page.locator("#cluster-1 .out").first.click()
    page.reload()
    assert len(edits_of(page)) == 1 and "last time" in page.locator("#status").inner_text()
    page.goto(other.as_uri())
    assert not edits_of(page)
    poison = ["7", "{", '[null, 7, {"do": "drop", "image": 1e9}, {"do": "x", "cluster": 0}]']
    for text in poison:
        page.evaluate(
            f"localStorage.setItem('deepclust edits ' + document.querySelector('main').dataset.run, {text!r})"
        )
        page.reload()
        assert not edits_of(page)
    assert not page.said


def test_the_map_shows_the_image_under_mouse_and_keyboard(visit, plain_page):
    page = visit(plain_page)
    canvas, peek = page.locator(".map svg"), page.locator(".peek")
    assert not peek.is_visible()
    canvas.hover()
    assert peek.is_visible() and "scan" in peek.inner_text()
    page.mouse.move(0, 0)
    assert not peek.is_visible()
    canvas.focus()
    first = peek.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert peek.inner_text() != first and peek.inner_text() in page.locator("#status").inner_text()
    drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, 96, 96).data).size"
    assert page.locator(".peek canvas").evaluate(drawn) > 10  # a picture, and not one colour
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash").startswith("#cluster-")
    assert not page.said


def test_refine_takes_what_the_page_saves(visit, photo_run, deepclust, tmp_path, photos):
    page = visit(photo_run / "gallery.html")
    sizes = page.locator("section[data-cluster]").evaluate_all(
        "all => all.map(s => Number(s.dataset.size))"
    )
    first, second = np.argsort(sizes)[::-1][:2].tolist()
    page.locator(f"#cluster-{second} .panel summary").click()
    page.locator(f"#cluster-{second} select").select_option(str(first))
    page.locator(f"#cluster-{second} [data-do=merge]").click()
    page.locator(f"#cluster-{first} .panel summary").click()
    page.locator(f"#cluster-{first} [name=name]").fill(HOSTILE[0])
    page.locator(f"#cluster-{first} [data-do=rename]").click()
    page.locator(f"#cluster-{first} .out").first.click()
    page.locator(f"#cluster-{first} [data-do=split]").click()
    told, out = saved(page, tmp_path), tmp_path / "better"
    done = deepclust("refine", photo_run, tmp_path / "edits.json", "--out", out, "--copy")
    assert done.code == 0, done.err
    better = visit(out / "gallery.html")
    titles = better.locator("section.cluster h3").all_text_contents()
    assert f"{HOSTILE[0]}, part 1" in titles and f"{HOSTILE[0]}, part 2" in titles
    assert titles[-1].startswith("Set aside") and f"Cluster {second}" not in titles
    assert better.locator("main").get_attribute("data-run") != told["run"]
    assert not edits_of(better) and not better.said and not better.evaluate("window.hit")
    assert len([p for p in (out / "clusters").rglob("*.png")]) == 60


def test_a_folder_is_clustered_then_corrected_in_the_page(visit, deepclust, pictures, tmp_path):
    folder = pictures(tmp_path / "mixed", 100)
    crops(folder, 100)
    how = ["--k", 4, "--profile", "ci", "--epochs", 2, "--size", 16, "--set", "width=4"]
    done = deepclust("cluster", folder, *how, "--out", tmp_path / "run", "--copy")
    assert done.code == 0 and "200 images" in done.out and "2 main epochs" in done.out
    page = visit(tmp_path / "run" / "gallery.html")
    before = page.locator("section[data-cluster]").evaluate_all(
        "all => Object.fromEntries(all.map(s => [s.dataset.cluster, Number(s.dataset.size)]))"
    )
    into, gone = sorted(before, key=before.get, reverse=True)[:2]
    page.locator(f"#cluster-{gone} .panel summary").click()
    page.locator(f"#cluster-{gone} select").select_option(into)
    page.locator(f"#cluster-{gone} [data-do=merge]").click()
    assert [one["do"] for one in saved(page, tmp_path)["edits"]] == ["merge"]
    out = tmp_path / "better"
    done = deepclust("refine", tmp_path / "run", tmp_path / "edits.json", "--out", out, "--copy")
    assert done.code == 0, done.err
    sorted_into = Counter(p.parent.name for p in (out / "clusters").rglob("*.png"))
    assert sum(sorted_into.values()) == 200
    assert max(sorted_into.values()) == before[into] + before[gone]
    assert not page.said and not outside(page)


def test_names_run_nothing(visit, make_page, tmp_path):
    names = [f"{HOSTILE[i % 5]}{i}" for i in range(120)]
    y, titles = np.arange(120) % 5, dict(enumerate(HOSTILE[:4]))
    more = {"y": y, "classes": HOSTILE, "titles": titles, "health": [HOSTILE[:3]]}
    page = visit(
        make_page(names=names, summary={"data": HOSTILE[1], HOSTILE[0]: HOSTILE[1]}, **more)
    )
    for number, name in titles.items():
        assert page.locator(f"#cluster-{number} h3").inner_text() == name.replace("\n", " ")
        page.locator(f"#cluster-{number} .panel summary").click()
        page.locator(f"#cluster-{number} .out").first.click()
        page.locator(f"#cluster-{number} [name=name]").fill(HOSTILE[(number + 1) % 5])
        page.locator(f"#cluster-{number} [data-do=rename]").click()
    page.locator("#cluster-0 select").select_option("1")
    page.locator("#cluster-0 [data-do=merge]").click()
    page.locator(".map svg").hover()
    assert len(edits_of(page)) == 9 and saved(page, tmp_path)["edits"][1]["name"] == HOSTILE[1]
    page.reload()
    page.wait_for_timeout(100)
    assert len(edits_of(page)) == 9
    assert not page.evaluate("window.hit") and not page.said and not outside(page)
    assert page.locator("script").count() == 1 and not page.locator("img[src=x]").count()
    assert not page.locator("svg[onload]").count() and "49" not in page.title()
    assert page.locator(
        "#cluster-2 h3 bdi"
    ).count()  # a name that turns the text turns its own only


def test_the_policy_stops_what_would_slip_through(visit, plain_page):
    page = visit(plain_page)
    page.evaluate(
        """() => {
        document.body.insertAdjacentHTML("beforeend", '<img src="x:" onerror="window.hit=1">');
        document.body.insertAdjacentHTML("beforeend", '<img src="http://127.0.0.1:9/a.png">');
        const script = document.createElement("script");
        script.textContent = "window.hit = 1";
        document.body.append(script);
    }"""
    )
    page.wait_for_timeout(200)
    assert not page.evaluate("window.hit") and len(page.said) >= 3
    assert all("Content Security Policy" in line for line in page.said)


def test_ten_thousand_images_open_in_seconds(visit, make_page):
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(10_000, 3, 8, 8), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    file = make_page(n=10_000, k=20, x=x)
    assert file.stat().st_size < 15e6
    start = time.monotonic()
    page = visit(file)
    page.wait_for_selector("#edits")
    page.locator("#cluster-10 .out").first.click()
    seconds = time.monotonic() - start
    assert seconds < 15 and len(edits_of(page)) == 1, seconds
    assert page.locator(".map circle[cx]").count() == 2000 and not page.said


def test_it_can_be_read_and_worked_without_eyes_or_mouse(visit, make_page):
    page = visit(make_page(health=[("Uneven", "one cluster is large", "")], y=np.arange(120) % 3))
    page.locator("#cluster-1 .panel summary").click()
    for tag in ("header", "main", "nav", "aside", "footer", "h1"):
        assert page.locator(tag).count() == 1, tag
    assert page.locator("html[lang]").count() == 1 and page.title()
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    unnamed = """() => [...document.querySelectorAll("button, a, input, select, summary, section, nav, aside")].filter(el => {
        const by = el.getAttribute("aria-labelledby");
        const name = el.getAttribute("aria-label") || (by && document.getElementById(by).textContent)
            || (el.labels && el.labels.length ? el.labels[0].textContent : "")
            || (el.matches("button, a, summary") ? el.textContent : "");
        return !name.trim();
    }).map(el => el.outerHTML.slice(0, 80))"""
    assert page.evaluate(unnamed) == []
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and max(np.diff(levels)) <= 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(el => el.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("[tabindex]:not([tabindex='0']):not([tabindex='-1'])").count() == 0
    assert page.locator("#status[role=status]").count() == 1
    labels = page.locator("[data-do]").evaluate_all(
        "all => all.map(b => b.getAttribute('aria-label'))"
    )
    assert len(labels) == len(set(labels)) == 12
    small = page.locator("button:visible").evaluate_all(
        "all => all.filter(b => Math.min(b.offsetWidth, b.offsetHeight) < 24).length"
    )
    assert small == 0


def test_focus_follows_the_page_and_can_be_seen(visit, plain_page):
    page = visit(plain_page)
    tops, kinds = [], []
    for _ in range(30):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => { const el = document.activeElement, box = el.getBoundingClientRect();
            return [box.top + scrollY, el.tagName.toLowerCase(), getComputedStyle(el).outlineStyle, Boolean(el.closest("#edits"))] }"""
        )
        assert at[2] != "none", at
        if at[3]:
            break
        tops.append(at[0])
        kinds.append(at[1])
    assert {"a", "svg", "summary", "button"} <= set(kinds)
    assert all(later >= earlier - 60 for earlier, later in zip(tops[1:], tops[2:]))


def luminance(colour: str) -> float:
    "Relative luminance of 'rgb(r, g, b)' (WCAG 2)."
    rgb = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(visit, make_page, scheme):
    file = make_page(y=np.arange(120) % 3)
    page = visit(file, color_scheme=scheme)
    grounds = [
        page.evaluate(f"getComputedStyle(document.querySelector('{css}')).backgroundColor")
        for css in ("body", ".cluster")
    ]
    assert (luminance(grounds[0]) < 0.1) == (scheme == "dark")
    for css in ("h1", ".soft", "figcaption", ".other b", "summary", ".cluster h3"):
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{css}')).color")
        for ground in grounds:
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (css, colour, ground)


def test_a_narrow_screen_needs_no_sideways_scrolling(visit, make_page):
    page = visit(make_page(k=12, names=["x" * 200] * 120), viewport={"width": 360, "height": 700})
    page.locator("#cluster-0 .panel summary").click()
    page.locator("#cluster-0 .out").first.click()
    edits_of(page)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
