"""Stored programs: one JSON object with one operation per line, easy to read and edit.

::

    {"setting": {"seed": "1/2", …},
    "operations": [
      ["munmap", 0, 11, ["0x1000", "0x1000"]],
      …
    ]}
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel.differential.pool import Mistake
from kernel.differential.subject import Subject
from kernel.engine.output import write_text


def text_of(subject: Subject, setting: Any, ops: list[Any]) -> str:
    """Return a program and its setting as the content of a file."""
    lines = ",\n".join("  " + json.dumps(subject.encode(op)) for op in ops)
    head = json.dumps(asdict(setting))
    return f'{{"setting": {head},\n"operations": [\n{lines}\n]}}\n'


def dump(subject: Subject, path: Path, setting: Any, ops: list[Any]) -> None:
    """Store a program and its setting.  Raises OSError."""
    write_text(path, text_of(subject, setting, ops))


def load(subject: Subject, path: Path) -> tuple[Any, list[Any]]:
    """Read a stored program and return its setting and operations.

    Raises Mistake, which names the file and the operation.
    """
    if path.exists() and not path.is_file():
        raise Mistake(f"{path}: not a stored program (not a regular file)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stored, rows = dict(data["setting"]), [list(row) for row in data["operations"]]
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Mistake(f"{path}: not a stored program ({error})") from None
    ops = []
    for n, row in enumerate(rows):
        try:
            ops.append(subject.decode(row))
        except (ValueError, TypeError) as error:
            raise Mistake(f"{path}: operation {n} {error}") from None
    try:
        return subject.setting_class(**stored), ops
    except TypeError as error:
        raise Mistake(f"{path}: not a stored program ({error})") from None
