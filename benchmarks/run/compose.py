"""Compose configurations from conf/ and installed packages, and resolve the files they name.

For bench.py, Hydra composes the configuration from the command line and :func:`resolved` turns it
into the plain data of config.yaml.  :func:`compose` does both for callers without a command line.
Importing this module registers the folders of installed packages with Hydra, beside conf/.
"""

import difflib
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from allocators.base import registry
from allocators.base.plugins import installed
from allocators.base.registry import PluginError
from benchmarks.run.job import JobError
from benchmarks.trace import shipped
from kernel import PROJECT

#: The project's own configuration, in a checkout or an installed copy.
CONF = PROJECT / "conf"
#: Groups of choices.
GROUPS = ("allocator", "workload", "kernel", "measure", "experiment")


class InstalledPlugins(SearchPathPlugin):
    """Search path of the folders that installed packages declare (allocators.base.plugins)."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders after conf/; print a warning for a package that cannot be found."""
        folders, complaints = installed()
        for folder in folders:
            search_path.append("malloc-bench plugins", str(folder))
        for complaint in complaints:
            print(f"warning: {complaint}", file=sys.stderr, flush=True)


Plugins.instance().register(InstalledPlugins)


def resolved(config: DictConfig, runtime: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain data with absolute paths.

    ``runtime``: hydra.runtime, with the choices and the folders that Hydra searched.  Raises
    JobError.
    """
    try:
        data = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise JobError(in_one_line(error)) from None
    data.pop("experiment", None)
    data.pop("debug", None)
    sources = [Path(s.path) for s in runtime.config_sources if s.provider != "hydra" and s.path]
    return _with_files(data, runtime.choices, sources, Path(runtime.cwd))


def in_one_line(error: Exception) -> str:
    """Return the message of an error of Hydra, OmegaConf or YAML, and what to do."""
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        if not equals:
            return f"{error.override}: expected KEY=VALUE"
        quote = "'" if '"' in value else '"'
        quoted = shlex.quote(f"{key}={quote}{value}{quote}")
        return f"{error.override}: quote the value, for Hydra and for the shell: {quoted}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not valid YAML: {error.problem}"
    text = str(error).partition("\nConfig search path")[0].partition("\nSee http")[0]
    details = ("full_key:", "object_type=", "reference_type=")
    lines = [line for line in text.splitlines() if not line.strip().startswith(details)]
    if isinstance(error, OmegaConfBaseException):
        place = f"{error.full_key}: " if error.full_key else ""
        return place + " ".join(lines[0].split())
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines += str(error.__cause__).splitlines()[:1]
    text = " ".join(" ".join(lines).split()) or f"wrong settings ({type(error).__name__})"
    if text.startswith("Config group override"):  # Hydra does not say which
        text += f"; choose {', '.join(GROUPS)} by a name"
    if isinstance(error, MissingConfigException) and error.options:
        name = str(error.missing_cfg_file).rpartition("/")[2]
        near = difflib.get_close_matches(name, error.options, 1)
        text += f"; did you mean {near[0]}?" if near else ""
    return text


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration composed from ``overrides``, the arguments of a command line.

    In addition to the command line's syntax, ``allocator=FILE.py`` chooses a plugin without a YAML
    file; its settings are overridden like any others.  Does not disturb a Hydra application in the
    same process.  Raises JobError with a one-line message.
    """
    arguments = [argument for given in overrides for argument in _expanded(given)]
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("config", arguments, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise JobError(in_one_line(error)) from None
    finally:
        GlobalHydra.instance().hydra = outer
    if config.get("debug"):
        raise JobError("debug=true: not available here; run python bench.py debug=true")
    runtime = config.hydra.runtime
    with open_dict(config):
        del config["hydra"]
    return resolved(config, runtime)


def _expanded(override: str) -> list[str]:
    """Replace ``allocator=FILE.py`` by the overrides that a YAML of that file would contain."""
    group, _, value = override.partition("=")
    if group != "allocator" or not value.endswith(".py"):
        return [override]
    path = str(Path(value).resolve())
    try:
        settings = {"name": path} | registry.load(path).formatted()
    except PluginError as error:
        raise JobError(str(error)) from None
    return ["~allocator", *(f"+allocator.{name}={_quoted(v)}" for name, v in settings.items())]


def _quoted(value: object) -> str:
    """Quote ``value`` for Hydra, whose grammar would split a path at its blanks."""
    return "'{}'".format(value.replace("'", r"\'")) if isinstance(value, str) else str(value)


def _with_files(
    config: Mapping[str, Any], choices: Mapping[str, str], sources: Iterable[Path], cwd: Path
) -> dict[str, Any]:
    """Return ``config`` with absolute paths of the files that it names.

    ``choices``: choice of each group; ``sources``: folders that Hydra searched; ``cwd``: the user's
    working directory, which hydra.job.chdir leaves.  A relative plugin path is resolved against the
    folder of the chosen YAML, then the folder that Hydra searched, then ``cwd``; a relative trace
    or library against ``cwd`` only.

    Raises JobError if the choice is defined twice, or if the plugin file does not exist.
    """
    config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for group in ("allocator", "workload"):
        choice = f"{group}/{choices.get(group)}.yaml"
        owners = {folder.resolve() for folder in sources if (folder / choice).is_file()}
        if len(owners) > 1:
            places = " and ".join(sorted(str(owner / choice) for owner in owners))
            chosen = f"{group}={choices[group]}"
            raise JobError(f"{chosen} is defined twice: {places}; rename or remove one")
        section = config.get(group, {})
        name, path = section.get("name"), section.get("path")
        if isinstance(name, str) and name.endswith(".py"):
            beside = [folder for owner in owners for folder in ((owner / choice).parent, owner)]
            section["name"] = str(_plugin_file(group, name, [*beside, cwd]))
        if isinstance(path, str) and path and not path.startswith(shipped.PREFIX):
            section["path"] = os.path.realpath(
                cwd / path
            )  # keeps a link to itself, unlike resolve()
    return config


def _plugin_file(group: str, name: str, folders: list[Path]) -> Path:
    """Return the path of the plugin file ``name``.  Raises JobError if no folder has it."""
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    places = ", ".join(map(str, dict.fromkeys(folders)))
    raise JobError(f"{group}.name={name}: no such file (looked in {places})")
