"""Would the site come out right? Everything that can be checked without Quarto.

    python tools/docs.py

Quarto says nothing about a sidebar entry without a notebook, a missing style sheet, a missing include or a dead link, so this
does. It also runs nbdev's own processing of the notebooks, which imports the modules and makes the tables of parameters.
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

import readme
from notebooks import DIRECTIVE, NBS, ROOT, Cell, joined, notebooks, read, short

CONFIGS = [ROOT / "_quarto.yml", NBS / "_quarto.yml", NBS / "nbdev.yml"]
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href)=\"([^\"]+)\"")
ANCHOR = re.compile(r"\]\(([^)\s#:]*)#([^)\s]+)\)")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|#|//)", re.I)
IMAGE = re.compile(r"<img\b[^>]*>", re.I)
# First words of `#|` lines that nbdev or Quarto knows
DIRECTIVES = set(
    "default_exp export exporti exports hide hide_input hide_output eval echo output include slow gpu notest exec_doc "
    "filter_stream code-fold code-summary fig-cap fig-alt fig-width fig-height label column warning "
    "layout-ncol layout tbl-cap".split()
)
PROCESS = """
from nbdev import doclinks, quarto, serve
if __name__ == "__main__":
    quarto.refresh_quarto_yml()
    doclinks._build_modidx()
    quarto.nbdev_sidebar.__wrapped__()
    serve.proc_nbs(force=True, n_workers=1)
"""


def named(node, suffix: str) -> list[str]:
    "Every text in a parsed YAML file that ends in `suffix`."
    if isinstance(node, str):
        return [node] if node.endswith(suffix) else []
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [text for item in inner for text in named(item, suffix)]


def check_configuration() -> list[str]:
    "Configuration files that are missing, do not parse, or name files that are not there."
    problems = []
    for path in CONFIGS:
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            problems.append(f"{path.relative_to(ROOT)}: {error}")
            continue
        files = [
            name for suffix in (".css", ".scss", ".html", ".yml") for name in named(config, suffix)
        ]
        # All of it is read from `nbs`, where one line includes the top-level file
        missing = [name for name in files if not (NBS / name).exists()]
        problems += [f"{path.relative_to(ROOT)}: {name} is not there" for name in missing]
    return problems


def check_sidebar() -> list[str]:
    "Notebooks that the sidebar leaves out, and entries without a notebook."
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    listed = named(config["website"]["sidebar"], ".ipynb")
    there = [short(path) for path in notebooks(NBS)]
    problems = [
        f"sidebar: {name} is not there" for name in named(config, ".ipynb") if name not in there
    ]
    problems += [f"sidebar: {name} is left out" for name in there if name not in listed]
    twice = {name for name in listed if listed.count(name) > 1}
    return problems + [f"sidebar: {name} comes twice" for name in sorted(twice)]


def dead(text: str, folder: Path, attached: tuple = ()) -> list[str]:
    "Links in a text, and pictures, to files that are not there."
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    found = []
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if target.startswith("attachment:"):
            found += [target] * (target.removeprefix("attachment:") not in attached)
        elif not ELSEWHERE.match(target) and not (folder / target.split("#")[0]).exists():
            found.append(target)
    return found


def check_links() -> list[str]:
    "Dead links in notebooks and in the markdown files at the top."
    problems = []
    for path in notebooks(NBS):
        for cell in (c for c in read(path) if c.kind == "markdown"):
            for link in dead(cell.source, path.parent, cell.attachments):
                problems.append(f"{short(path)} cell {cell.n}: dead link {link}")
    for path in [*sorted(ROOT.glob("*.md")), *sorted(NBS.rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        problems += [
            f"{path.relative_to(ROOT)}: dead link {link}" for link in dead(text, path.parent)
        ]
    return problems


def check_directives() -> list[str]:
    "`#|` lines that neither nbdev nor Quarto knows: they would be shown to the reader, or do nothing."
    problems = []
    for path in notebooks(NBS):
        for cell in (c for c in read(path) if c.kind == "code"):
            words = [re.split(r"[\s:]", line)[0] for line in DIRECTIVE.findall(cell.source)]
            unknown = [word for word in words if word not in DIRECTIVES]
            problems += [
                f"{short(path)} cell {cell.n}: unknown directive {word}" for word in unknown
            ]
    return problems


def pictured(cell: Cell) -> bool:
    "Whether the page shows a stored picture that has no text of its own."
    if cell.hidden or cell.directives & {"output: false", "hide_output"}:
        return False
    stored = [out.get("data", {}) for out in cell.outputs]
    if any(kind.startswith("image/") for data in stored for kind in data):
        return True
    tags = [tag for data in stored for tag in IMAGE.findall(joined(data.get("text/html")))]
    return any("alt=" not in tag for tag in tags)


def check_alt_texts() -> list[str]:
    "Pictures without a text that says what is seen on them, for readers who do not see them."
    problems = []
    for path in notebooks(NBS):
        texts = []
        for cell in filter(pictured, read(path)):
            where = f"{short(path)} cell {cell.n}: "
            if not isinstance(cell.alt, str):
                problems.append(f'{where}no `#| fig-alt: "..."` above the code says what is seen')
            elif not 20 <= len(cell.alt) <= 300:
                problems.append(f"{where}fig-alt has {len(cell.alt)} characters, not 20 to 300")
            elif cell.alt in texts:
                problems.append(f"{where}fig-alt is that of another picture")
            texts.append(cell.alt)
    return problems


def check_processing() -> list[str]:
    "What nbdev says when it prepares the notebooks for the site."
    settings = NBS / "nbdev.yml"
    before = settings.read_text(encoding="utf-8") if settings.exists() else ""
    script = (
        ROOT / "runs" / "process_notebooks.py"
    )  # A file, because nbdev starts further processes from it
    script.parent.mkdir(exist_ok=True)
    script.write_text(PROCESS, encoding="utf-8")
    run = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True)
    output = run.stdout + run.stderr
    problems = []
    if run.returncode or "Traceback" in output or "Error in notebook" in output:
        problems.append("processing the notebooks failed:\n" + output[-3000:])
    if settings.read_text(encoding="utf-8") != before:
        problems.append("nbs/nbdev.yml: not what settings.ini says; it is now, keep it")
    made = [short(path) for path in notebooks(NBS) if not (ROOT / "_proc" / short(path)).exists()]
    return problems + [f"{name}: was not processed" for name in made]


def check_anchors() -> list[str]:
    "Links to a section that no heading has, on their own page or on another."
    problems = []
    for path in notebooks(NBS):
        for cell in (c for c in read(path) if c.kind == "markdown"):
            for target, anchor in ANCHOR.findall(cell.source):
                file = (path.parent / target) if target else path
                if file.suffix == ".ipynb" and file.exists() and anchor not in headings(file):
                    problems.append(f"{short(path)} cell {cell.n}: no section {target}#{anchor}")
    return problems


def headings(path: Path) -> set[str]:
    "Where links can lead within a page, as pandoc names it."
    text = "\n".join(c.source for c in read(path) if c.kind == "markdown")
    found = re.findall(r"^#+ +(.+?) *(?:\{#([\w-]+)\})?$", text, re.M)
    plain = lambda title: re.sub(r"[^\w\s.-]", "", title).strip().lower()
    return {own or re.sub(r"^[^a-z]+", "", plain(title).replace(" ", "-")) for title, own in found}


def check_pages() -> list[str]:
    "Processed notebooks that would show a directive as code, or an error."
    problems = []
    for path in sorted((ROOT / "_proc").rglob("*.ipynb")):
        for cell in (c for c in read(path) if c.kind == "code"):
            where = f"_proc/{path.relative_to(ROOT / '_proc')} cell {cell.n}"
            code = re.sub(r"\A(?:#\|.*\n?)*", "", cell.source)  # those at the top are for Quarto
            left = [line for line in DIRECTIVE.findall(code) if line.split()[0] in DIRECTIVES]
            problems += [f"{where}: shows the directive {line}" for line in left]
            broken = [o["ename"] for o in cell.outputs if o.get("output_type") == "error"]
            problems += [f"{where}: shows {name}" for name in broken]
    return problems


def check_readme() -> list[str]:
    return readme.different() if readme.INDEX.exists() else ["nbs/index.ipynb is not there"]


CHECKS = [
    check_configuration,
    check_sidebar,
    check_links,
    check_anchors,
    check_directives,
    check_alt_texts,
    check_readme,
    check_processing,
    check_pages,
]

if __name__ == "__main__":
    found = [problem for check in CHECKS for problem in check()]
    print("\n".join(found) or "the site's parts fit together")
    sys.exit(1 if found else 0)
