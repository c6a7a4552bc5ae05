"""Are the notebooks small, documented, and fit to be reviewed?

    python tools/sizes.py [NOTEBOOK ...]

Lines are lines of statements: signatures (one parameter a line, with its comment), docstrings, comments, blank lines, imports
and tables of constants are free, because they are what makes code readable. The limits exist because a
reader holds a function in the eye at once: a body of 30 lines fills a screen beside its picture; a class may have 35,
since its methods are read one by one. A cell that is better long says why in a comment `# long: reason`.

Stored outputs must be there (the site shows them), must hold no error, and must be the same on every machine: no times, no
absolute paths, no memory addresses.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path

from notebooks import NBS, Cell, front_matter, joined, notebooks, read, short

BODY, CELL, CLASS = 30, 30, 35
STORED = 1_000_000  # Bytes of a notebook with its outputs
# Words whose meaning the tables of `core` fix; they need no comment
KNOWN = set(
    "self cls x idx h z y p q k n scores centres pseudo assign tau momentum seed epoch step device "
    "module data run path method plan recipe folder config views what stream channels width bs lr "
    "confidence names history keys title ax axes rows columns profile say value error course optimiser".split()
)
VOLATILE = {
    "memory address": r"\b0x[0-9a-fA-F]{6,}\b",
    "absolute path": r"(?<![\w.:/<])/(?:home|root|Users|tmp|var|usr|opt|mnt|work|private|content)/\w",
    "drive path": r"\b[A-Z]:\\\w",
    "time": r"\b\d+\.\d+ ?(?:s|ms|sec|secs|seconds|min|minutes)\b|\btook \d|\d ?(?:it|img|images)/s\b",
    "progress bar": r"\d+%\|",
    "date": r"\b20\d\d-\d\d-\d\d[ T]\d\d:\d\d",
}
DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)


# Lines of statements


def docstring(node: ast.AST) -> ast.AST | None:
    "The node of a docstring."
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if text and isinstance(first.value.value, str) else None


def lines_of(nodes: list[ast.stmt]) -> set[int]:
    "Lines that hold statements, definitions' own heads and docstrings left out."
    found = set()
    for node in nodes:
        inner = [
            s
            for field in ("body", "orelse", "finalbody", "handlers")
            for s in getattr(node, field, [])
        ]
        if isinstance(node, (*DEFS, ast.ClassDef)):
            inner = [s for s in inner if s is not docstring(node)]
        elif inner:
            first = min(child.lineno for child in inner)
            found |= set(range(getattr(node, "lineno", first), first))
        else:
            found |= set(range(node.lineno, node.end_lineno + 1))
        found |= lines_of(inner) if inner else set()
    return found


def is_table(node: ast.stmt) -> bool:
    "A constant written out: a dictionary, list or tuple given a name."
    value = getattr(node, "value", None) if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    return isinstance(value, (ast.Dict, ast.List, ast.Tuple, ast.Set))


def functions(tree: ast.AST) -> list[tuple[str, ast.AST]]:
    "Every function, with its class's name before its own."
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*DEFS, ast.ClassDef)):
            inner = functions(node)
            found += [(node.name, node)] * isinstance(node, DEFS)
            found += [(f"{node.name}.{name}", f) for name, f in inner]
    return found


def body_length(node: ast.AST) -> int:
    return len(lines_of([s for s in node.body if s is not docstring(node)]))


def check_lengths(cell: Cell) -> list[str]:
    "Functions and cells that are too long, unless the cell says why."
    if re.search(r"^\s*# long: \w", cell.source, re.M):
        return []
    body = cell.tree.body
    imports = (ast.Import, ast.ImportFrom)
    length = len(lines_of([s for s in body if not is_table(s) and not isinstance(s, imports)]))
    limit = CLASS if any(isinstance(s, ast.ClassDef) for s in body) else CELL
    problems = [f"cell has {length} lines of statements, at most {limit}"] * (length > limit)
    for name, node in functions(cell.tree):
        if body_length(node) > BODY:
            problems.append(f"{name} has {body_length(node)} lines of statements, at most {BODY}")
    return problems


# Documentation


def commented(source: str) -> set[int]:
    "Lines that carry a comment."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def explained(arg: ast.arg, comments: set[int], words: str) -> bool:
    "A comment, a word everybody knows here, a tensor whose shape says it, or its name in the docstring."
    shape = isinstance(arg.annotation, ast.Subscript) and isinstance(
        arg.annotation.slice, ast.Tuple
    )
    named = bool(re.search(rf"\b{re.escape(arg.arg)}\b", words))
    return arg.arg in KNOWN or shape or named or arg.lineno in comments or arg.arg.startswith("_")


def undocumented(name: str, node: ast.AST, comments: set[int]) -> list[str]:
    "Parameters of a function that nobody explains."
    args = node.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    words = docstring(node).value.value if docstring(node) else ""
    bad = [arg.arg for arg in every if arg and not explained(arg, comments, words)]
    return [f"{name}: no comment at parameter {', '.join(bad)}"] if bad else []


def is_command(node: ast.AST) -> bool:
    "A command of the command line, whose options carry their own help."
    return any(".command(" in ast.unparse(decorator) for decorator in node.decorator_list)


def check_documentation(cell: Cell) -> list[str]:
    "Public names without a docstring; parameters without a comment, those of methods but `__init__` excepted."
    comments, problems = commented(cell.source), []
    for node in cell.tree.body:
        if not isinstance(node, (*DEFS, ast.ClassDef)) or node.name.startswith("_"):
            continue
        inner = (
            [f for f in node.body if isinstance(f, DEFS)] if isinstance(node, ast.ClassDef) else []
        )
        public = [node, *(f for f in inner if not f.name.startswith("_"))]
        problems += [f"{item.name}: no docstring" for item in public if not docstring(item)]
        owners = [(node.name, node)] if isinstance(node, DEFS) and not is_command(node) else []
        owners += [(f"{node.name}.__init__", f) for f in inner if f.name == "__init__"]
        for name, function in owners:
            problems += undocumented(name, function, comments)
    return problems


# Stored outputs


def texts(output: dict) -> list[str]:
    "What of an output a person reads as text."
    data = output.get("data", {})
    return [joined(output.get("text", ""))] + [
        joined(value) for kind, value in data.items() if kind.startswith("text/")
    ]


def shows(cell: Cell) -> bool:
    "Whether running the cell certainly leaves an output: a picture, a print or a value at its end."
    body = cell.tree.body
    calls = [s.value for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    words = {ast.unparse(call.func) for call in calls}
    value = bool(body) and isinstance(body[-1], ast.Expr)
    plain = value and isinstance(body[-1].value, (ast.Name, ast.Tuple, ast.Subscript))
    silent = cell.source.rstrip().endswith(";")
    return bool(words & {"plt.show", "print", "display"}) or plain and not silent


def check_outputs(cell: Cell) -> list[str]:
    "Errors, missing outputs, and text that another machine would not repeat."
    problems = []
    if any(output["output_type"] == "error" for output in cell.outputs):
        problems.append("stored output is an error")
    if shows(cell) and not cell.outputs and not cell.skipped:
        problems.append("no stored output; run the notebook")
    for text in [text for output in cell.outputs for text in texts(output)]:
        for what, pattern in VOLATILE.items():
            found = re.search(pattern, text)
            if found:
                problems.append(f"stored output holds a {what}: {found[0]!r}")
    return problems


def check_imports_apart(cell: Cell) -> list[str]:
    "Building the site runs every cell that holds an import, so imports keep to themselves."
    body = [s for s in cell.tree.body if not docstring(ast.Module([s], []))]
    imports = [isinstance(s, (ast.Import, ast.ImportFrom)) for s in body]
    return ["imports and code in one cell"] if any(imports) and not all(imports) else []


def check_notebook(path: Path) -> list[str]:
    "What is wrong with one notebook."
    problems, cells = [], read(path)
    if path.stat().st_size >= STORED:
        problems.append(
            f"{short(path)}: {path.stat().st_size / 1e6:.1f} MB stored, under 1 MB wanted"
        )
    trained = front_matter(cells).get("skip_exec", False)
    for cell in (c for c in cells if c.kind == "code"):
        found = check_lengths(cell) + check_outputs(cell)
        found += check_imports_apart(cell) if not trained else []
        found += check_documentation(cell) if cell.exported else []
        problems += [f"{short(path)} cell {cell.n}: {text}" for text in found]
    return problems


def lengths(paths: list[Path]) -> list[int]:
    "Body lengths of all exported functions."
    cells = [cell for path in paths for cell in read(path) if cell.exported]
    return [body_length(node) for cell in cells for _, node in functions(cell.tree)]


if __name__ == "__main__":
    paths = [Path(name).resolve() for name in sys.argv[1:]] or notebooks(NBS)
    found = [problem for path in paths for problem in check_notebook(path)]
    sizes = sorted(lengths(paths))
    if sizes:
        ninth = sizes[int(0.9 * (len(sizes) - 1))]
        print(
            f"{len(sizes)} exported functions; lines of a body: median {statistics.median(sizes):g}, "
            f"90th percentile {ninth}, longest {sizes[-1]}"
        )
    print("\n".join(found) or f"{len(paths)} notebooks are in order")
    sys.exit(1 if found else 0)
