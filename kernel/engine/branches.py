"""Branch instrumentation: make an instrumented copy of a compiled function and its callees.

Each marked (@jit) function whose first parameter is ``k`` is parsed, and a statement is inserted
into both arms of every if, for and while; a missing else arm is added.  :func:`instrument` inserts
counters, ``k.hits[n] += 1``, also at the function's entry; :func:`report_branches` inserts a call
that receives the conditional and its direction.  The copies are ordinary marked functions for
:func:`kernel.engine.jit.build`; they keep file and line numbers, so that messages refer to the
source.
"""

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kernel.engine.jit import global_names, hook, is_jit
from kernel.engine.switches import NAMES

#: Length of ``k.hits`` (kernel.types).
MAX_BRANCHES = 4096
#: Name of the callback of ``report_branches`` in the copies.
_CALLBACK = "_on_branch"


@dataclass(frozen=True)
class Branch:
    """One arm of a conditional, or a function's entry; ``number`` is its index in ``k.hits``."""

    number: int
    module: str
    function: str
    file: str
    line: int
    text: str  # the statement and its arm
    under: str = ""  # switch (kernel.engine.switches) that must be on to compile the branch; or ""

    def __str__(self) -> str:
        return f"{self.module.replace('.', '/')}.py:{self.line}: {self.function}: {self.text}"


class _Insert(ast.NodeTransformer):
    """Transformer that inserts a counter into every arm and records the branch that it counts."""

    def __init__(
        self, function: Callable, first_line: int, branches: list[Branch], under: str
    ) -> None:
        self.function = function
        self.first_line = first_line
        self.branches = branches
        self.under = under

    def statement(self, number: int, first: int) -> str:
        """Return the statement to insert into branch ``number``.

        ``first`` is the number of the first arm of its conditional, -1 at a function's entry.
        """
        return f"k.hits[{number}] += 1"

    def counter(self, node: ast.AST, text: str, first: int) -> ast.stmt:
        """Record a new branch at ``node`` and return the statement to insert.

        Raises ValueError if there are more than MAX_BRANCHES branches.
        """
        number = len(self.branches)
        if number >= MAX_BRANCHES:
            raise ValueError(f"more than {MAX_BRANCHES} branches: k.hits is too short")
        code = self.function.__code__
        self.branches.append(
            Branch(
                number,
                self.function.__module__,
                self.function.__name__,
                code.co_filename,
                self.first_line + node.lineno - 1,
                text,
                self.under,
            )
        )
        statement = ast.parse(self.statement(number, first)).body[0]
        for part in ast.walk(statement):
            if hasattr(part, "lineno"):
                part.lineno = part.end_lineno = node.lineno
                part.col_offset = part.end_col_offset = node.col_offset
        return statement

    def _arms(self, node: ast.If | ast.For | ast.While, head: str) -> ast.AST:
        # Number the branches in source order: this statement first, then those inside it.
        outer = self.under
        if isinstance(node, ast.If):
            self.under = _switch(node.test) or outer
        first = len(self.branches)
        body = self.counter(node, head, first)
        self.under = outer
        endless = isinstance(node, ast.While) and isinstance(node.test, ast.Constant)
        otherwise = None if endless else self.counter(node, f"{head}  else", first)
        # Statements nested in the first arm also require its switch.
        if isinstance(node, ast.If):
            self.under = _switch(node.test) or outer
        node.body = [self.visit(statement) for statement in node.body]
        self.under = outer
        node.orelse = [self.visit(statement) for statement in node.orelse]
        node.body.insert(0, body)
        if otherwise is not None:
            node.orelse.insert(0, otherwise)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        """Count both arms of an if."""
        return self._arms(node, f"if {ast.unparse(node.test)}:")

    def visit_While(self, node: ast.While) -> ast.AST:
        """Count the iterations of a loop, and how often it ends."""
        return self._arms(node, f"while {ast.unparse(node.test)}:")

    def visit_For(self, node: ast.For) -> ast.AST:
        """Count the iterations of a loop, and how often it ends."""
        return self._arms(node, f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}:")


class _Report(_Insert):
    """Transformer that inserts a call of ``on_branch`` into every arm, but not at the entry.

    Omits conditionals that are decided at compile time: the machine code has no branch for them.
    """

    def _arms(self, node: ast.If | ast.For | ast.While, head: str) -> ast.AST:
        if isinstance(node, ast.For) or not _is_constant(node.test):
            return super()._arms(node, head)
        self.generic_visit(node)
        return node

    def statement(self, number: int, first: int) -> str:
        """Return a call of ``on_branch``; a conditional has the number of its first arm."""
        return "pass" if first < 0 else f"{_CALLBACK}(k, {first}, {int(number == first)})"


def _is_constant(test: ast.expr) -> bool:
    """Return True if ``test`` refers only to constants: switches and settings, in capitals."""
    parts = list(ast.walk(test))
    changing = (ast.Call, ast.Attribute, ast.Subscript)
    return not any(isinstance(part, changing) for part in parts) and all(
        part.id.isupper() for part in parts if isinstance(part, ast.Name)
    )


def _switch(test: ast.expr) -> str:
    """Return the switch that ``test`` requires, alone or first in an ``and``; "" for none."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        test = test.values[0]
    return test.id if isinstance(test, ast.Name) and test.id in NAMES else ""


def _takes_kernel(function: Callable) -> bool:
    code = function.__code__
    return code.co_argcount > 0 and code.co_varnames[0] == "k"


def _watched_code(
    function: Callable, kind: type[_Insert], branches: list[Branch], under: str
) -> types.CodeType:
    """Return the instrumented code of ``function``, a hook of the switch ``under`` unless ""."""
    lines, first_line = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError(f"{function.__qualname__} is not a plain function")
    insert = kind(function, first_line, branches, under)
    entry = insert.counter(definition, "entered", -1)
    insert.generic_visit(definition)
    has_docstring = ast.get_docstring(definition) is not None
    definition.body.insert(int(has_docstring), entry)
    definition.decorator_list = []
    ast.increment_lineno(tree, first_line - 1)
    module = compile(tree, function.__code__.co_filename, "exec")
    return next(c for c in module.co_consts if isinstance(c, types.CodeType))


def instrument(function: Callable, **bindings: Any) -> tuple[Callable, list[Branch]]:
    """Return a copy of ``function`` and its callees that counts branches, and the branches.

    The copy is marked as ``function`` is, and has the ``bindings`` (see
    :func:`kernel.engine.jit.build`).  Raises ValueError if ``k.hits`` is too short.
    """
    branches: list[Branch] = []
    return _Copies(bindings, _Insert, branches).of(function), branches


def report_branches(
    function: Callable, on_branch: Callable, within: str, **bindings: Any
) -> Callable:
    """Return a copy of ``function`` that calls ``on_branch(k, conditional, taken)`` at each branch.

    ``on_branch``: a marked function.  ``conditional`` is the number of an if, for or while, less
    than MAX_BRANCHES; ``taken`` is 1 if its first arm runs, else 0.  Only functions in modules
    whose names match the pattern ``within`` are instrumented.  ``bindings``: see
    :func:`instrument`.
    """
    copies = _Copies(bindings, _Report, [], {_CALLBACK: on_branch}, within)
    return copies.of(function)


class _Copies:
    """The instrumented copies of functions, each made once."""

    def __init__(
        self,
        bindings: Mapping[str, Any],
        kind: type[_Insert],
        branches: list[Branch],
        names: Mapping[str, Any] | None = None,
        within: str = "",
    ) -> None:
        self.bindings, self.kind, self.branches = bindings, kind, branches
        self.names = names or {}  # globals that the inserted statements use
        self.within = re.compile(within)
        self.done: dict[Callable, Callable] = {}

    def of(self, function: Callable, under: str = "") -> Callable:
        """Return the copy of ``function``, which is a hook of the switch ``under`` unless "".

        Copies its callees too.
        """
        if function in self.done:
            return self.done[function]
        if when := getattr(function, "__when__", ""):
            return self.done.setdefault(function, hook(self.of(function.__wrapped__, when), when))
        scope = dict(function.__globals__) | self.names
        watched = _takes_kernel(function) and self.within.match(function.__module__)
        code = function.__code__
        if watched:
            code = _watched_code(function, self.kind, self.branches, under)
        for name in global_names(function):
            if name in self.bindings:
                scope[name] = self.bindings[name]
            if is_jit(scope.get(name)):
                scope[name] = self.of(scope[name])
        copy = types.FunctionType(code, scope, function.__name__, function.__defaults__)
        copy.__module__ = function.__module__
        copy.__qualname__ = function.__qualname__
        copy.__jit__ = dict(function.__jit__)
        copy.__cold__ = function.__cold__
        copy.__intrinsic__ = function.__intrinsic__
        self.done[function] = copy
        return copy
