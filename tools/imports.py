"""Do imports point one way?

    python tools/imports.py [PACKAGE_FOLDER]

    core < runs processes page pictures borrowed lessons < named stream
         < data augment nets cluster memory metrics viz gallery folders export speed duplicates < health < engine widgets
         < recipes bench start linear < methods < train < own < refine howmany < photos < estimator cli report baselines exercises

A module may import from levels before its own, never from its own or a later one. Methods do not import one another,
except that any may use `pretext`, and digpro <- ncc <- byol, because the papers build on each other so.
"""

import ast
import sys
from pathlib import Path

from notebooks import PACKAGE

LEVELS = [
    "core",
    "runs processes page pictures borrowed lessons",
    "named stream",
    "data augment nets cluster memory metrics viz gallery folders export speed duplicates",
    "health",
    "engine widgets",
    "recipes bench start linear",
    "methods",
    "train",
    "own",
    "refine howmany",
    "photos",
    "estimator cli report baselines exercises",
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
METHODS_MAY = {"ncc": {"byol"}, "digpro": {"byol", "ncc"}}
# Tools for writing notebooks are never imported by the library ...
NEVER = {
    "nbdev",
    "fastcore",
    "execnb",
    "papermill",
    "nbformat",
    "nbclient",
    "nbconvert",
    "jupytext",
}
NEVER |= {"jupyter", "jupyter_client", "jupyterlab", "pytest"}
# ... and these only inside the function that needs them
LAZY = {"IPython", "ipywidgets", "ipympl", "umap"}


def imported(node: ast.AST, module: str) -> list[str]:
    "Dotted names that an import statement refers to, relative ones made absolute."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = module.split(".")[: -node.level] if node.level else []
    source = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{source}.{alias.name}" for alias in node.names]


def at_top(tree: ast.Module) -> set[ast.AST]:
    "Nodes that run when the module is imported."
    found, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop()
        found.add(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


def allowed(module: list[str], target: list[str]) -> bool:
    "Whether a module of the package may import another; names without the package's own."
    if module == target:
        return True
    mine, theirs = LEVEL[module[0]], LEVEL[target[0]]
    if module[0] == target[0] == "methods" and len(module) > 1 and len(target) > 1:
        return target[1] == "pretext" or target[1] in METHODS_MAY.get(module[1], ())
    return theirs < mine


def check_file(path: Path, package: Path) -> list[str]:
    "What is wrong with the imports of one module."
    name, problems = package.name, []
    parts = list(path.relative_to(package.parent).with_suffix("").parts)
    module = [p for p in parts[1:] if p != "__init__"]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = at_top(tree)
    if module and module[0] not in LEVEL:
        return [f"{path.name}: module {module[0]} has no place in LEVELS of tools/imports.py"]
    for node in ast.walk(tree):
        for target in imported(node, ".".join(parts)):
            words, where = target.split("."), f"{'/'.join(parts)}.py:{node.lineno}"
            if words[-1] == "*":
                problems.append(f"{where}: star import")
            if words[0] in NEVER:
                problems.append(f"{where}: {words[0]} is a notebook tool")
            lazy = LAZY - {"ipywidgets"} if module == ["widgets"] else LAZY  # its subject
            if words[0] in lazy and node in top:
                problems.append(f"{where}: import {words[0]} inside the function that uses it")
            if words[0] != name or len(words) < 2 or not module:
                continue
            inner = words[1:3] if words[1] == "methods" else words[1:2]
            if words[1] in LEVEL and not allowed(module, inner):
                problems.append(f"{where}: {'.'.join(module)} may not import {'.'.join(inner)}")
            elif words[1] not in LEVEL and words[1] != "__version__":
                problems.append(f"{where}: {target} is not known to tools/imports.py")
    return problems


def check(package: Path = PACKAGE) -> list[str]:
    "What is wrong in the whole package."
    files = sorted(p for p in package.rglob("*.py") if p.name != "_modidx.py")
    return [problem for path in files for problem in check_file(path, package)]


if __name__ == "__main__":
    found = check(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE)
    print("\n".join(found) or "imports point one way")
    sys.exit(1 if found else 0)
