"""Compose conf/ and the words of a command line into one plain configuration.

On bench.py's command line Hydra composes by itself, and :func:`resolved` makes of it what a job is
checked and repeated from; :func:`compose` does both where there is no command line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from allocators.base import registry
from allocators.base.registry import PluginError
from benchmarks.run.job import JobError, absolute_paths
from kernel import PROJECT

CONF = PROJECT / "conf"


def resolved(config: DictConfig, runtime: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain data with absolute paths.

    ``runtime``: hydra.runtime, which says what was chosen and where Hydra looked for it.  Raises
    JobError.
    """
    try:
        data = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise JobError(str(error).splitlines()[0]) from None
    data.pop("experiment", None)
    sources = [Path(s.path) for s in runtime.config_sources if s.provider != "hydra" and s.path]
    for group in ("allocator", "workload"):
        choice = f"{group}/{runtime.choices.get(group)}.yaml"
        homes = sorted({str(folder / choice) for folder in sources if (folder / choice).is_file()})
        if len(homes) > 1:
            raise JobError(f"{group}={runtime.choices[group]} stands twice: {' and '.join(homes)}")
    folders = [Path.cwd(), *sources, *(s / g for s in sources for g in ("allocator", "workload"))]
    return absolute_paths(data, folders)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration that ``overrides``, the words of a command line, stand for.

    Beyond what the command line takes, ``allocator=FILE.py`` chooses a plugin that has no YAML; its
    settings are then set as any other's.  A Hydra application that runs in the same process goes
    on undisturbed.  Raises JobError with one line.
    """
    words = [word for override in overrides for word in _words(override)]
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("config", words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error).partition("\nConfig search path")[0].partition("\nSee http")[0]
        raise JobError(" ".join(text.split())) from None
    finally:
        GlobalHydra.instance().hydra = theirs
    runtime = config.hydra.runtime
    with open_dict(config):
        del config["hydra"]
    return resolved(config, runtime)


def _words(override: str) -> list[str]:
    """Replace ``allocator=FILE.py`` by the settings that a YAML for the file would spell."""
    group, _, value = override.partition("=")
    if group != "allocator" or not value.endswith(".py"):
        return [override]
    path = str(Path(value).resolve())
    try:
        settings = {"name": path} | registry.load(path).spelled()
    except PluginError as error:
        raise JobError(str(error)) from None
    return ["~allocator", *(f"+allocator.{name}={_quoted(v)}" for name, v in settings.items())]


def _quoted(value: object) -> str:
    """Spell ``value`` for Hydra, whose grammar would otherwise split a path at its blanks."""
    return "'{}'".format(value.replace("'", r"\'")) if isinstance(value, str) else str(value)
