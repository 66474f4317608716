"""Mistakes in a marked function that are easier to find in its source than in its byte code.

A call with the wrong number of arguments, a function that returns a value on one path and none on
another, a field that the state does not have: Numba reports these late, and often at another place.
"""

import ast
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple


class Mistake(NamedTuple):
    """Mistake at ``line`` of the file; ``what`` continues a sentence that begins ``name()``."""

    line: int
    what: str


@cache
def _functions(filename: str) -> dict[tuple[str, int], ast.FunctionDef]:
    """Return the functions of a source file by name and first line; none if it cannot be read."""
    try:
        tree = ast.parse(Path(filename).read_bytes())  # as Python decodes it
    except (OSError, SyntaxError, ValueError):
        return {}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {(n.name, min(d.lineno for d in (*n.decorator_list, n))): n for n in nodes}


def _node(function: FunctionType) -> ast.FunctionDef | None:
    """Return the definition of ``function``, or None if its source is not in a file."""
    code = function.__code__
    return _functions(code.co_filename).get((code.co_name, code.co_firstlineno))


def mistakes(
    function: FunctionType, scope: dict[str, Any], *, anything: bool = False
) -> Iterator[Mistake]:
    """Yield the mistakes of ``function``; ``scope`` holds the values of its global names.

    ``anything``: the function is not compiled, so that it may contain all that Python can run.
    """
    node = _node(function)
    if node is not None:
        if not anything:
            yield from _unsupported(node)
        yield from _wrong_calls(node, scope)
        yield from _missing_returns(node, scope)


def returns_value(function: FunctionType) -> bool:
    """Return True if a statement of ``function`` returns a value, or if there is no source."""
    node = _node(function)
    return node is None or any(n.value is not None for n in _returns(node))


def odd_return(function: FunctionType) -> Mistake | None:
    """Return a return statement of ``function`` whose value is obviously no whole number."""
    node = _node(function)
    if node is None:
        return None
    records = [argument.arg for argument in node.args.args[:2]]
    for statement in _returns(node):
        match statement.value:
            case ast.Constant(value=None | float() | str() | bytes() | complex()):
                kind = repr(statement.value.value)
            case ast.BinOp(op=ast.Div()) | ast.Call(func=ast.Name(id="float")):
                kind = "a float"
            case ast.Tuple() | ast.List() | ast.Dict() | ast.Set():
                kind = "several values"
            case ast.Name(id=name) if name in records:
                kind = name
            case _:
                continue
        return Mistake(statement.lineno, f"returns {kind}: it must return a whole number")
    return None


def unknown_fields(
    function: FunctionType,
    position: int,
    fields: Collection[str],
    *,
    nested: Mapping[str, Collection[str]] | None = None,
    beyond: bool = True,
) -> Iterator[tuple[FunctionType, Mistake]]:
    """Yield each use of an attribute that a record does not have, with the function that has it.

    ``function`` takes a record with ``fields`` as argument number ``position``; ``nested`` has the
    fields of those that are records themselves.  Functions to which it passes the record are
    searched as well, those in other files only if ``beyond``; a use in another file is reported at
    the call.
    """
    file = function.__code__.co_filename
    # A function, the position of the record, and the call in ``file`` that leads to it.
    pending: list[tuple[FunctionType, int, tuple[FunctionType, int, str] | None]]
    pending, seen = [(function, position, None)], {(function, position)}
    for function, position, call in pending:  # grows
        node = _node(function)
        if node is None or position >= len(node.args.args):
            continue
        record = node.args.args[position].arg
        for use in ast.walk(node):
            match use:
                case ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id=name), attr=outer), attr=field
                ):
                    known = (nested or {}).get(outer, (field,))
                    if name == record and field not in known:
                        what = f"uses {name}.{outer}.{field}: it has {_listed(known)}"
                        yield function, Mistake(use.lineno, what)
                case ast.Attribute(value=ast.Name(id=name), attr=field):
                    if name == record and field not in fields:
                        what = f"uses {name}.{field}: it has {_listed(fields)}"
                        if call is None:
                            yield function, Mistake(use.lineno, what)
                        else:
                            yield call[0], Mistake(call[1], f"calls {call[2]}(), which {what}")
                case ast.Call(func=ast.Name(id=name), args=arguments):
                    callee = function.__globals__.get(name)
                    if not isinstance(callee, FunctionType):
                        continue
                    own = callee.__code__.co_filename == file
                    if not own and not beyond:
                        continue
                    site = call or (None if own else (function, use.lineno, name))
                    for i, argument in enumerate(arguments):
                        if _is(argument, record) and (callee, i) not in seen:
                            seen.add((callee, i))
                            pending.append((callee, i, site))


def _listed(fields: Collection[str]) -> str:
    """Return the names of the fields, the first few of many."""
    shown = ", ".join(list(fields)[:12])
    return f"{shown}, …" if len(fields) > 12 else shown


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


#: Constructs that cannot be compiled, and what to do.  A try statement could catch the exception
#: that ends the simulated process (kernel.task).
_UNSUPPORTED = {
    (ast.Lambda, ast.FunctionDef): "defines a function: write it at the top level, marked @jit",
    (ast.AsyncFunctionDef, ast.ClassDef): "defines a class or a coroutine: write plain functions",
    (ast.Try, ast.TryStar): "has a try statement: test for the error instead",
    (ast.With, ast.AsyncWith): "has a with statement: compiled code has no context managers",
    (ast.Yield, ast.YieldFrom, ast.GeneratorExp): "is or has a generator: write a loop",
    (ast.Import, ast.ImportFrom): "imports a module: do that at the top level",
}


def _unsupported(function: ast.FunctionDef) -> Iterator[Mistake]:
    """Yield the constructs that cannot be compiled, and strings other than messages."""
    pending: list[ast.AST] = list(function.body)
    for node in pending:  # grows
        for kinds, what in _UNSUPPORTED.items():
            if isinstance(node, kinds):
                yield Mistake(node.lineno, what)
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Raise():
                continue  # a docstring; the message of an exception
            case ast.Call(func=ast.Name(id="print"), args=arguments, keywords=keywords):
                if keywords:
                    yield Mistake(
                        node.lineno, f"calls print() with {keywords[0].arg}: leave it out"
                    )
                pending += [a for a in arguments if not isinstance(a, ast.Constant)]
                continue
            case ast.Assert(test=test):
                pending.append(test)
                continue
            case ast.Subscript(slice=ast.Constant(value=str())):
                pending.append(node.value)  # a field of a record
                continue
            case ast.Constant(value=str() | bytes()):
                yield Mistake(node.lineno, "uses a string: compiled code has numbers only")
        pending += ast.iter_child_nodes(node)


def _wrong_calls(node: ast.FunctionDef, scope: dict[str, Any]) -> Iterator[Mistake]:
    for call in ast.walk(node):
        callee = scope.get(call.func.id) if _names_callee(call) else None
        if isinstance(callee, (int, float, tuple)):
            kind = type(callee).__name__
            yield Mistake(call.lineno, f"calls {call.func.id}, which is a global {kind}")
        if not isinstance(callee, FunctionType) or any(
            isinstance(argument, ast.Starred) for argument in call.args
        ):
            continue
        try:
            keywords = {word.arg: None for word in call.keywords if word.arg}
            inspect.signature(callee).bind(*call.args, **keywords)
        except TypeError as error:
            what = f"calls {call.func.id}{inspect.signature(callee)} wrongly: {error}"
            yield Mistake(call.lineno, what)


def _names_callee(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _returns(node: ast.AST) -> Iterator[ast.Return]:
    """Yield the return statements below ``node``, except those of nested functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield from _returns(child)


def _missing_returns(node: ast.FunctionDef, scope: dict[str, Any]) -> Iterator[Mistake]:
    returns = list(_returns(node))
    value = next((r.lineno for r in returns if r.value is not None), None)
    if value is None:
        return
    for bare in (r.lineno for r in returns if r.value is None):
        yield Mistake(bare, f"returns nothing here, but a value in line {value}")
    if _completes(node.body, scope):
        last = node.body[-1].lineno
        yield Mistake(last, f"ends here without a return value, but returns one in line {value}")


def _completes(body: list[ast.stmt], scope: dict[str, Any]) -> bool:
    """Return True if control may reach the end of ``body``."""
    return all(_passes(statement, scope) for statement in body)


def _passes(statement: ast.stmt, scope: dict[str, Any]) -> bool:
    """Return True if control may reach the statement after ``statement``."""
    match statement:
        case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
            return False
        case ast.If(body=body, orelse=orelse):
            return _completes(body, scope) or _completes(orelse, scope)
        case ast.While(test=ast.Constant(value=True) | ast.Constant(value=1), body=body):
            return any(_breaks(child) for child in body)
        case ast.Match(cases=cases):
            wildcard = any(isinstance(c.pattern, ast.MatchAs) and not c.guard for c in cases)
            return not wildcard or any(_completes(c.body, scope) for c in cases)
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            callee = scope.get(name)
            node = _node(callee) if isinstance(callee, FunctionType) else None
            return node is None or _returning(node, callee)
    return True


def _breaks(node: ast.AST) -> bool:
    """Return True if a break below ``node`` ends the loop around ``node``, not one inside it."""
    if isinstance(node, (ast.For, ast.While)):
        return any(_breaks(child) for child in node.orelse)
    return isinstance(node, ast.Break) or any(map(_breaks, ast.iter_child_nodes(node)))


def _returning(node: ast.FunctionDef, function: Callable) -> bool:
    """Return True if a call of the function may return (kernel.task.abort never does)."""
    return any(_returns(node)) or _completes(node.body, function.__globals__)
