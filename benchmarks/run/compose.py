"""Compose configurations from conf/ and installed packages, and resolve the files they name.

On bench.py's command line Hydra composes by itself, and :func:`resolved` makes of it what a job is
checked and repeated from; :func:`compose` does both where there is no command line.  Importing this
tells Hydra of the packages: it finds their choices beside those of conf/.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from allocators.base import registry
from allocators.base.plugins import installed
from allocators.base.registry import PluginError
from benchmarks.run.job import JobError
from benchmarks.trace import shipped
from kernel import PROJECT

#: The project's own configuration, in a checkout as where it is installed.
CONF = PROJECT / "conf"


class InstalledPlugins(SearchPathPlugin):
    """The folders that installed packages declare (allocators.base.plugins)."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add them behind conf/; a package that cannot be found is a warning, no more."""
        folders, complaints = installed()
        for folder in folders:
            search_path.append("malloc-bench plugins", str(folder))
        for complaint in complaints:
            print(f"warning: {complaint}", file=sys.stderr, flush=True)


Plugins.instance().register(InstalledPlugins)


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
    data.pop("debug", None)
    sources = [Path(s.path) for s in runtime.config_sources if s.provider != "hydra" and s.path]
    return _with_files(data, runtime.choices, sources)


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
    if config.get("debug"):
        raise JobError("debug=true: a debugger runs on its own: python bench.py debug=true")
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


def _with_files(
    config: Mapping[str, Any], choices: Mapping[str, str], sources: Iterable[Path]
) -> dict[str, Any]:
    """Return ``config`` with the files it names made absolute.

    ``choices``: what Hydra chose by group, ``sources``: the folders where it looked.  A relative
    plugin file is looked for beside the chosen YAML, then in the folder where Hydra looked and in
    the working directory; a relative trace or library in the working directory only.

    Raises JobError for a choice that stands twice and for a plugin file that is nowhere.
    """
    config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    for group in ("allocator", "workload"):
        choice = f"{group}/{choices.get(group)}.yaml"
        homes = {folder.resolve() for folder in sources if (folder / choice).is_file()}
        if len(homes) > 1:
            places = " and ".join(sorted(str(home / choice) for home in homes))
            raise JobError(f"{group}={choices[group]} stands twice: {places}; rename or remove one")
        section = config.get(group, {})
        name, path = section.get("name"), section.get("path")
        if isinstance(name, str) and name.endswith(".py"):
            beside = [folder for home in homes for folder in ((home / choice).parent, home)]
            section["name"] = str(_plugin_file(group, name, [*beside, Path.cwd()]))
        if isinstance(path, str) and path and not path.startswith(shipped.PREFIX):
            section["path"] = os.path.realpath(path)  # keeps a link to itself, unlike resolve()
    return config


def _plugin_file(group: str, name: str, folders: list[Path]) -> Path:
    """Return the path of the plugin file ``name``.  Raises JobError when it is nowhere."""
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    places = ", ".join(map(str, dict.fromkeys(folders)))
    raise JobError(f"{group}.name={name}: there is no such file (looked in {places})")
