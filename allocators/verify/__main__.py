"""``python -m allocators.verify [NAME | PATH.py …]``: verify allocators against their contract.

Exit codes: 0 no failure, 1 some failures or a plugin with a mistake, 2 unknown plugin or settings,
130 interrupted.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from allocators.base.registry import PluginError, PluginFault, load, names
from allocators.verify import OPERATIONS, SCENARIOS, variations
from allocators.verify.pool import Case, run_cases
from kernel.engine.cache import cache_root
from kernel.engine.command import (
    EXIT_FAILED,
    EXIT_USAGE,
    OneLineParser,
    jobs,
    positive,
    report_exit,
    run,
    seed,
    timeout,
)
from kernel.engine.progress import shown_progress
from kernel.engine.watchdog import PATIENCE

PAGE_SIZES = (4096, 65536)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m allocators.verify",
        description="Verify allocators against their contract, with their default settings, "
        "other settings and several page sizes.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME|PATH.py", help="default: all allocators")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="verify these settings only, not the defaults and their variations",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=SCENARIOS,
        metavar="SCENARIO",
        help=f"run these scenarios only; choose from: {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--operations",
        type=positive,
        default=OPERATIONS,
        metavar="N",
        help="minimum number of operations in the main plan (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=1, metavar="N", help="seed of the plans (default: %(default)s)"
    )
    parser.add_argument(
        "--patience",
        type=timeout,
        default=PATIENCE,
        metavar="S",
        help="timeout of one operation, seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="DIR",
        help="look for an allocator configuration DIR/allocator/NAME.yaml first",
    )
    parser.add_argument(
        "--jobs",
        type=jobs,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of worker processes (default: %(default)s)",
    )
    return parser


def _settings(words: list[str]) -> dict[str, Any]:
    """Parse KEY=VALUE arguments.  Raises PluginError."""
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise PluginError(f"--settings {word}: expected KEY=VALUE")
        settings[key] = yaml.safe_load(value)
    return settings


def _configured(name: str, directory: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the plugin and its settings: from DIR/allocator/NAME.yaml if there is one.

    Otherwise ``name`` is the plugin, without settings.  Raises PluginError.
    """
    path = directory / "allocator" / f"{name}.yaml" if directory else None
    if path is None or not path.is_file():
        return name, {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        plugin = settings.pop("name")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise PluginError(f"{path}: not an allocator configuration: {error!r}") from None
    for folder in (directory, path.parent):
        if plugin.endswith(".py") and (folder / plugin).is_file():
            plugin = str(folder / plugin)
    return plugin, settings


def _cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases to verify.  Raises PluginError."""
    cases = []
    given = _settings(arguments.settings)
    for word in arguments.names or names():
        name, base = _configured(word, arguments.config_dir)
        plugins = [load(name, base | given)] if given else list(variations(name, base))
        plugins[0].inspect()
        for i, plugin in enumerate(plugins):
            cases += [
                Case(
                    name=name,
                    label=plugin.label,
                    settings=plugin.formatted(),
                    page_size=page_size,
                    as_timed=i == 0 and page_size == PAGE_SIZES[0],
                    operations=arguments.operations,
                    seed=arguments.seed,
                    only=tuple(arguments.only),
                    patience=arguments.patience,
                )
                for page_size in (PAGE_SIZES if i == 0 else PAGE_SIZES[:1])
            ]
    return cases


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        cases = _cases(arguments)
    except PluginError as error:
        code = EXIT_FAILED if isinstance(error, PluginFault) else EXIT_USAGE
        return report_exit("allocators.verify", str(error), code)
    cache_root()  # the worker processes share what it chooses
    failed: Counter[str] = Counter()
    with shown_progress("allocators.verify") as progress:
        for case, outcome in run_cases(
            cases,
            arguments.jobs,
            lambda running: progress(len(failed) / len(cases), "; ".join(running)),
        ):
            verdict = "FAILED" if outcome.failures else "ok"
            notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
            done = f"{outcome.operations:,} operations, {outcome.seconds:.1f} s"
            console.print(f"{case}: {verdict}, {done}{notes}")
            for failure in outcome.failures:
                console.print(f"  {failure}")
            failed[str(case)] += len(outcome.failures)
    total = failed.total()
    console.print(f"{len(cases)} settings verified, {total or 'no'} failure{'s' * (total != 1)}")
    return EXIT_FAILED if total else 0


if __name__ == "__main__":
    sys.exit(run("allocators.verify", main))
