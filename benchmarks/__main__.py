"""``python -m benchmarks``: list the project's commands, one line each.

A command is a module that runs as a program and whose docstring begins like this one.
"""

import ast
import re
import sys
from collections.abc import Iterator

from kernel import PROJECT
from kernel.engine.command import run

_FOLDERS = ("kernel", "allocators", "benchmarks", "analysis")
_FIRST_LINE = re.compile(r"``(python [^`]+)``: (.+)")


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command line and its purpose, from the docstrings; bench.py comes first."""
    files = [path for folder in _FOLDERS for path in sorted((PROJECT / folder).rglob("*.py"))]
    for path in [PROJECT / "bench.py", *files]:
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' not in text:
            continue
        match = _FIRST_LINE.match(ast.get_docstring(ast.parse(text)) or "")
        if match:
            yield match[1], match[2]


def main() -> int:
    """Print the list.  Returns the exit code."""
    found = list(commands())
    width = max(len(command) for command, _ in found)
    for command, purpose in found:
        print(f"{command:<{width}}  {purpose}")
    return 0


if __name__ == "__main__":
    sys.exit(run("benchmarks", main))
