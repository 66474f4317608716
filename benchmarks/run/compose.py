"""Where a configuration comes from: conf/, what packages add to it, and the files that it names.

Importing this tells Hydra of the packages: it finds their choices beside those of conf/.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from allocators.base.plugins import installed
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


def with_files(
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
        choice = f"{group}/{choices[group]}.yaml"
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
            section["path"] = str(Path(path).resolve())
    return config


def _plugin_file(group: str, name: str, folders: list[Path]) -> Path:
    """Return the path of the plugin file ``name``.  Raises JobError when it is nowhere."""
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    places = ", ".join(map(str, dict.fromkeys(folders)))
    raise JobError(f"{group}.name={name}: there is no such file (looked in {places})")
