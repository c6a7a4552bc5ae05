"""Small wrong versions of a piece of code: one flipped sign, one dropped normalisation, one removed `detach`.

`mutants(source)` gives every wrong version of the functions and classes in a cell. A mutant is an edit of the
text, so comments, line numbers and layout stay, and its difference can be shown as two lines.
"""

import ast
from dataclasses import dataclass
from typing import Iterator

BINARY = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
BINARY |= {ast.Pow: ("**", "*"), ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*")}
COMPARE = {ast.Lt: ("<", ">="), ast.LtE: ("<=", ">"), ast.Gt: (">", "<="), ast.GtE: (">=", "<")}
COMPARE |= {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "==")}
COMPARE |= {ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")}
COMPARE |= {ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")}
PAIRS = "min/max amin/amax argmin/argmax minimum/maximum all/any ones/zeros cos/sin clamp_min/clamp_max mean/sum"
RENAME = {a: b for pair in PAIRS.split() for a, b in (pair.split("/"), pair.split("/")[::-1])}
# Calls whose argument takes their place
DROP = set(
    "unit normalize softmax log_softmax sigmoid logsigmoid tanh relu detach clamp clamp_ clip "
    "clamp_min clamp_max exp log sqrt square abs log1p expm1 floor round".split()
)
NO_GRAD = {"no_grad", "inference_mode", "evaluating", "autocast"}
MODULES = {"F", "torch", "np", "math", "nn", "functional", "numpy"}
FLIPPED = {"maximize", "descending", "largest", "align_corners", "unbiased"}
REDUCE = set(
    "sum mean max min argmax argmin amax amin softmax log_softmax norm cumsum logsumexp std var "
    "all any sort argsort flip roll normalize unbind".split()
)
SILENT = {"print", "warn", "write"}  # Calls whose arguments are words for people
SKIP_NAMES = ("plot_", "show_", "draw_", "__repr__", "__str__", "extra_repr")


@dataclass(frozen=True)
class Edit:
    "Replace the bytes from `start` to `end`."

    function: str  # Where: 'name' or 'Class.method'
    line: int  # Of the cell, from 1
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()


def called(node: ast.AST) -> str:
    "The last word of what is called: 'normalize' for `F.normalize(x)`."
    func = node.func if isinstance(node, ast.Call) else node
    return getattr(func, "attr", getattr(func, "id", ""))


def is_method(func: ast.AST) -> bool:
    "Whether a call is `x.f()` rather than `f(x)` or `torch.f(x)`."
    root = func
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(func, ast.Attribute) and getattr(root, "id", "") not in MODULES


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or getattr(node, "value", None).__class__ is str


class Finder(ast.NodeVisitor):
    "Walks a parsed cell and collects edits."

    def __init__(self, source: str):
        self.edits: list[Edit] = []
        self.names: list[str] = []
        self.raw = source.encode()
        lines = self.raw.splitlines(keepends=True)
        self.offsets = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]

    # Positions and text

    def start(self, node) -> int:
        return self.offsets[node.lineno - 1] + node.col_offset

    def end(self, node) -> int:
        return self.offsets[node.end_lineno - 1] + node.end_col_offset

    def text(self, node) -> str:
        "The node's source, in brackets if it needs them to stand alone."
        text = self.raw[self.start(node) : self.end(node)].decode()
        plain = (
            ast.Name,
            ast.Call,
            ast.Attribute,
            ast.Subscript,
            ast.Constant,
            ast.List,
            ast.Tuple,
        )
        return text if isinstance(node, plain) else f"({text})"

    def edit(self, line: int, start: int, end: int, text: str) -> None:
        if self.names:
            self.edits.append(Edit(".".join(self.names), line, start, end, text))

    def replace(self, node, text: str) -> None:
        self.edit(node.lineno, self.start(node), self.end(node), text)

    def between(self, left, right, old: str, new: str) -> None:
        "Replace an operator, which stands between its two sides."
        start, end = self.end(left), self.start(right)
        gap = self.raw[start:end].decode()
        if old in gap:
            self.edit(left.end_lineno, start, end, gap.replace(old, new, 1))

    # What is walked, and what is not

    def enter(self, node) -> None:
        if node.name.startswith(SKIP_NAMES):
            return
        self.names.append(node.name)
        for decorator in node.decorator_list:
            if called(decorator) in NO_GRAD:
                self.replace(decorator, "(lambda f: f)")
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = enter

    def nothing(self, node) -> None:
        pass

    visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = nothing

    def visit_Assert(self, node) -> None:
        self.visit(node.test)

    def visit_AnnAssign(self, node) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Lambda(self, node) -> None:
        self.visit(node.body)

    # Operators

    def visit_BinOp(self, node) -> None:
        if type(node.op) in BINARY and not (is_text(node.left) or is_text(node.right)):
            self.between(node.left, node.right, *BINARY[type(node.op)])
            self.numbers(node.left, node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node) -> None:
        if type(node.op) in BINARY and not is_text(node.value):
            old, new = BINARY[type(node.op)]
            self.between(node.target, node.value, old + "=", new + "=")
            self.numbers(node.value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node) -> None:
        if (
            isinstance(node.op, ast.Not)
            or isinstance(node.op, ast.USub)
            and not is_number(node.operand)
        ):
            self.replace(node, self.text(node.operand))
        self.generic_visit(node)

    def visit_Compare(self, node) -> None:
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, sides[1:]):
            self.between(left, right, *COMPARE[type(op)])
        self.numbers(*sides)
        self.generic_visit(node)

    def visit_BoolOp(self, node) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self.between(left, right, old, new)
        self.generic_visit(node)

    def numbers(self, *nodes) -> None:
        "Add one to numbers that take part in arithmetic or comparison."
        for node in nodes:
            negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
            if is_number(node):
                self.replace(node, repr(node.value + 1))
            elif negative and is_number(node.operand):
                self.replace(node, self.raw[self.start(node.operand) : self.end(node)].decode())

    # Branches

    def negate(self, node) -> None:
        if not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
            self.replace(node.test, f"not ({self.text(node.test)})")
        self.generic_visit(node)

    visit_If = visit_IfExp = negate

    def visit_With(self, node) -> None:
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and called(call) in NO_GRAD:
                inner = self.text(call.args[0]) if called(call) == "evaluating" else ""
                self.replace(call, f"__import__('contextlib').nullcontext({inner})")
        self.generic_visit(node)

    # Calls

    def visit_Call(self, node) -> None:
        name = called(node)
        if name in SILENT:
            return
        self.rename(node, name)
        self.drop(node, name)
        self.axis(node, name)
        self.flags(node, name)
        self.generic_visit(node)

    def rename(self, node, name: str) -> None:
        builtin_sum = name == "sum" and isinstance(node.func, ast.Name)
        if name in RENAME and not builtin_sum:
            end = self.end(node.func)
            self.edit(node.func.end_lineno, end - len(name), end, RENAME[name])

    def drop(self, node, name: str) -> None:
        if name in DROP and is_method(node.func):
            self.replace(node, self.text(node.func.value))
        elif name in DROP and node.args:
            self.replace(node, self.text(node.args[0]))

    def axis(self, node, name: str) -> None:
        "Another axis, where it is written as a number."
        values = [kw.value for kw in node.keywords if kw.arg in ("dim", "axis")]
        if name in REDUCE:
            values += node.args[:1] if is_method(node.func) else node.args[1:2]
        for value in values:
            text = self.raw[self.start(value) : self.end(value)].decode()
            if text in ("0", "1", "-1"):
                self.replace(value, {"0": "1", "1": "0", "-1": "0"}[text])

    def flags(self, node, name: str) -> None:
        "Minimum for maximum, descending for ascending."
        given = {kw.arg for kw in node.keywords}
        for kw in node.keywords:
            if kw.arg in FLIPPED and isinstance(kw.value, ast.Constant):
                self.replace(kw.value, repr(not kw.value.value))
        for call, flag in (("linear_sum_assignment", "maximize=True"), ("topk", "largest=False")):
            if name == call and flag.split("=")[0] not in given:
                end = self.end(node) - 1
                self.edit(node.end_lineno, end, end, f", {flag}")


def mutants(source: str) -> Iterator[Edit]:
    "Every edit that gives valid and different code, each once."
    tree = ast.parse(source)
    finder = Finder(source)
    finder.visit(tree)
    seen = {ast.dump(tree)}
    for edit in sorted(finder.edits, key=lambda e: (e.line, e.start, e.end, e.text)):
        try:
            dump = ast.dump(ast.parse(edit.apply(source)))
        except SyntaxError:
            continue
        if dump not in seen:
            seen.add(dump)
            yield edit
