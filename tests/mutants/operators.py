"""Changes to source text that a machine can think of: the operators of `tests/mutate.py`.

Each change replaces one piece of text, so that the rest of a file keeps its lines. Nothing is changed in docstrings, annotations, string
constants, messages of errors, or calls that only print.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Edit = tuple[str, int, int, str]  # operator, start, end, new text

ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
}
ARITHMETIC |= {ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")}
COMPARISONS = {
    ast.Lt: ("<", "<=", ">="),
    ast.LtE: ("<=", "<", ">"),
    ast.Gt: (">", ">=", "<="),
    ast.GtE: (">=", ">", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_PAIRS = "min max|sum mean|amin amax|minimum maximum|any all|zeros ones|zeros_like ones_like|floor ceil|argmin argmax|softmax log_softmax"
_PAIRS += "|eval train|append extend|isnan isinf|startswith endswith|keys values|lstrip rstrip|triu tril|ge gt|le lt"
RENAMED = {a: b for pair in _PAIRS.split("|") for a, b in (pair.split(), pair.split()[::-1])}
RENAMED |= {"no_grad": "enable_grad", "inference_mode": "enable_grad"}
_METHODS = "detach clamp clamp_ clip abs square sqrt exp log log2 masked_fill masked_fill_ sort sorted flip float round lower upper strip"
_METHODS += " copy clone long int bool half double to eval train requires_grad_ cumsum neg sigmoid tanh relu logsigmoid expm1 log1p unique"
DROPPED = frozenset(_METHODS.split())
QUIET = {"say", "print", "log", "warn", "warning", "info", "debug", "note", "echo", "cast", "super", "TypeVar"}
UNSEEN = {
    "description",
    "encoding",
    "strict",
    "device",
}  # arguments that no test on this machine could miss, or mere words
MODULES = {"math", "torch", "F", "np"}
COMPOUND = (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.UnaryOp, ast.Lambda, ast.NamedExpr)


@dataclass(frozen=True)
class Change:
    file: str  # in tinyllm/
    function: str  # the outermost function that it is in, as `Class.method`; "" in the body of the module or a class
    line: int
    operator: str
    start: int
    end: int
    new: str
    before: str  # the changed lines, and what they become: these name the change
    after: str

    @property
    def key(self) -> str:
        return "|".join((self.file, self.function, self.before, self.after))


class Source:
    """A file's text, its tree, and where a node stands in the text."""

    def __init__(self, text: str):
        self.text, self.tree = text, ast.parse(text)
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = text.splitlines()

    def _offset(self, line: int, column: int) -> int:
        """Return the offset in characters; the parser counts columns in bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.AST) -> int:
        return self._offset(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self._offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def of(self, node: ast.AST) -> str:
        return self.text[self.start(node) : self.end(node)]

    def whole_lines(self, start: int, end: int, new: str) -> tuple[str, str]:
        """Return the lines that an edit touches, and what they become."""
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", end)
        last = len(self.text) if last < 0 else last
        edited = self.text[first:start] + new + self.text[end:last]
        return " ".join(self.text[first:last].split()), " ".join(edited.split())


class _Edits:
    """All edits of single nodes, by the node's type."""

    def __init__(self, source: Source):
        self.source, self.of = source, source.of

    def of_node(self, node: ast.AST) -> Iterator[Edit]:
        method: Callable[[ast.AST], Iterator[Edit]] | None = getattr(self, f"_{type(node).__name__}", None)
        if method:
            yield from method(node)

    def _all(self, operator: str, node: ast.AST, new: str) -> Edit:
        start, end = self.source.start(node), self.source.end(node)
        if not isinstance(node, ast.stmt | ast.Slice) and isinstance(ast.parse(new, mode="eval").body, COMPOUND):
            new = f"({new})"
        return operator, start, end, new

    def _between(self, operator: str, left: ast.AST, right: ast.AST, old: str, new: str) -> Edit:
        """Replace an operator's sign, which stands between its operands."""
        start = self.source.end(left)
        found = re.search(rf"(?<!\w){re.escape(old)}(?!\w)" if old.isalpha() else re.escape(old).replace(r"\ ", r"\s+"),
                          self.source.text[start : self.source.start(right)])  # fmt: skip
        assert found, (old, self.of(left))
        return operator, start + found.start(), start + found.end(), new

    def _BinOp(self, node: ast.BinOp) -> Iterator[Edit]:  # noqa: N802
        signs = ARITHMETIC.get(type(node.op))
        if signs is None or any(
            isinstance(side, ast.JoinedStr | ast.List) or _is_text(side) for side in (node.left, node.right)
        ):
            return
        if isinstance(node.op, ast.Div) and re.search(r"(?i)folder|path|directory|root|cache|file", self.of(node)):
            return
        yield self._between("arithmetic", node.left, node.right, *signs)
        yield self._all("operand dropped", node, self.of(node.left))

    def _AugAssign(self, node: ast.AugAssign) -> Iterator[Edit]:  # noqa: N802
        signs = ARITHMETIC.get(type(node.op))
        if signs and not isinstance(node.value, ast.List | ast.Tuple):
            yield self._between("arithmetic", node.target, node.value, f"{signs[0]}=", f"{signs[1]}=")
        yield self._all("statement removed", node, "pass")

    def _Compare(self, node: ast.Compare) -> Iterator[Edit]:  # noqa: N802
        for left, sign, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old, *others = COMPARISONS[type(sign)]
            for new in others:
                yield self._between("comparison", left, right, old, new)

    def _BoolOp(self, node: ast.BoolOp) -> Iterator[Edit]:  # noqa: N802
        parts = [f"({self.of(v)})" if isinstance(v, COMPOUND) else self.of(v) for v in node.values]
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield self._all("and/or", node, f" {new} ".join(parts))
        for i in range(len(parts)):
            yield self._all("condition dropped", node, f" {old} ".join(parts[:i] + parts[i + 1 :]))

    def _UnaryOp(self, node: ast.UnaryOp) -> Iterator[Edit]:  # noqa: N802
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            yield self._all("negation removed", node, self.of(node.operand))

    def _Constant(self, node: ast.Constant) -> Iterator[Edit]:  # noqa: N802
        value = node.value
        if isinstance(value, bool):
            yield self._all("constant", node, str(not value))
        elif isinstance(value, int):
            for new in (value + 1, value - 1):
                yield self._all("constant", node, str(new))
        elif isinstance(value, float):
            for new in (value * 2, 0.0) if value else (1.0,):
                yield self._all("constant", node, str(new) if abs(new) != float("inf") else "0.0")

    def _Call(self, node: ast.Call) -> Iterator[Edit]:  # noqa: N802
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in RENAMED and not (name in ("min", "max") and any(k.arg == "default" for k in node.keywords)):
            end = self.source.end(function)
            yield "renamed", end - len(name), end, RENAMED[name]
        unseen = name == "to" and "device" in self.of(node)
        if (
            name in DROPPED
            and not unseen
            and isinstance(function, ast.Attribute)
            and self.of(function.value) not in MODULES
        ):
            yield self._all("call dropped", node, self.of(function.value))
        elif name in DROPPED and len(node.args) == 1:
            yield self._all("call dropped", node, self.of(node.args[0]))
        parts = [self.of(a) for a in node.args] + [
            f"{k.arg}={self.of(k.value)}" if k.arg else f"**{self.of(k.value)}" for k in node.keywords
        ]
        called = f"{self.of(function)}("
        for i, word in enumerate(node.keywords, len(node.args)):
            if word.arg and word.arg not in UNSEEN:
                yield self._all("argument dropped", node, called + ", ".join(parts[:i] + parts[i + 1 :]) + ")")
        simple = [isinstance(a, ast.Name | ast.Attribute | ast.Subscript) for a in node.args]
        for i in range(len(node.args) - 1):
            if simple[i] and simple[i + 1] and name != "isinstance":
                swapped = [*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]]
                yield self._all("arguments swapped", node, called + ", ".join(swapped) + ")")

    def _Slice(self, node: ast.Slice) -> Iterator[Edit]:  # noqa: N802
        bounds = [self.of(part) if part else "" for part in (node.lower, node.upper, node.step)]
        for i, part in enumerate((node.lower, node.upper, node.step)):
            if part is None:
                continue
            yield self._all("bound dropped", node, _slice([*bounds[:i], "", *bounds[i + 1 :]]))
            if i < 2 and not isinstance(part, ast.Constant):
                for new in (f"{bounds[i]} + 1", f"{bounds[i]} - 1"):
                    yield self._all("bound", node, _slice([*bounds[:i], new, *bounds[i + 1 :]]))

    def _test(self, node: ast.If | ast.IfExp | ast.While) -> Iterator[Edit]:
        for new in ("True", "False"):
            if not (isinstance(node, ast.While) and new == "True") and self.of(node.test) not in (
                "True",
                "TYPE_CHECKING",
            ):
                yield self._all("condition fixed", node.test, new)

    _If = _IfExp = _While = _test

    def _comprehension(self, node: ast.comprehension) -> Iterator[Edit]:
        for test in node.ifs:
            yield self._all("condition fixed", test, "True")

    def _Expr(self, node: ast.Expr) -> Iterator[Edit]:  # noqa: N802
        if not isinstance(node.value, ast.Constant):
            yield self._all("statement removed", node, "pass")

    def _Assign(self, node: ast.Assign) -> Iterator[Edit]:  # noqa: N802
        target = node.targets[0]
        used = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
        again = isinstance(target, ast.Name) and target.id in used
        if again or isinstance(target, ast.Subscript | ast.Attribute):
            yield self._all("statement removed", node, "pass")

    def _removed(self, node: ast.stmt) -> Iterator[Edit]:
        yield self._all("statement removed", node, "pass")

    _Raise = _Continue = _Break = _Delete = _removed

    def _Return(self, node: ast.Return) -> Iterator[Edit]:  # noqa: N802
        if node.value is None:
            yield self._all("statement removed", node, "pass")

    def _FunctionDef(self, node: ast.FunctionDef) -> Iterator[Edit]:  # noqa: N802
        inside = [n for n in ast.walk(node) if n is not node]
        if any(isinstance(n, ast.Yield | ast.YieldFrom) or (isinstance(n, ast.Return) and n.value) for n in inside):
            return
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        if not isinstance(first, ast.Expr | ast.Pass | ast.Raise) or len(node.body) > 2:
            start = self.source.start(first)
            yield "returned early", start, start, f"return\n{' ' * first.col_offset}"


def _slice(bounds: list[str]) -> str:
    return f"{bounds[0]}:{bounds[1]}" + (f":{bounds[2]}" if bounds[2] else "")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children in which changes are made."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "msg", "exc", "cause"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if name == "decorator_list" and not re.search("no_grad|inference_mode", ast.unparse(child)):
                continue
            if isinstance(child, ast.AST) and not _is_quiet(child):
                yield child


def _is_quiet(node: ast.AST) -> bool:
    """Return True where a change could change no more than words, types or an import."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    call = node.value if isinstance(node, ast.Expr) else node
    if not isinstance(call, ast.Call):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in QUIET or name.endswith(("Error", "Warning"))


def changes(file: str, text: str) -> list[Change]:
    """Return every change to a file's text once, in the order of the text."""
    source = Source(text)
    edits = _Edits(source)
    found: dict[str, Change] = {}

    def walk(node: ast.AST, scope: tuple[str, ...], function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = (*scope, node.name)
            if isinstance(node, ast.FunctionDef):
                function = function or ".".join(scope)
        for operator, start, end, new in edits.of_node(node):
            before, after = source.whole_lines(start, end, new)
            change = Change(file, function, text.count("\n", 0, start) + 1, operator, start, end, new, before, after)
            if before != after:
                found.setdefault(change.key, change)
        for child in _parts(node):
            walk(child, scope, function)

    walk(source.tree, (), "")
    return sorted(found.values(), key=lambda change: (change.start, change.end))


def apply(change: Change, text: str) -> str:
    return text[: change.start] + change.new + text[change.end :]
