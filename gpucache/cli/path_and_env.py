"""What `gpucache path` and `gpucache env` do: they print a device's directory, or its variables. Imports no click.

The command line has been read by `quick`, or by click in `path_and_env_options`.
"""

from __future__ import annotations

import os

from gpucache.cli.settings import settings_of
from gpucache.cli.terminal import print_data, say
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.directories.registry import DeviceCacheRegistry


class PathCall(Value, kw_only=True):
    """A call of `gpucache path`, which prints the directory of a device."""

    device: int | str
    """A CUDA ordinal, or a UUID, or what only one UUID begins with."""
    root: str | None = None
    as_json: bool = False

    def execute(self) -> int:
        """Print the directory, or as JSON all that is known of the device; returns the exit code."""
        registry = _recorded(self.root)
        ordinal = registry.ordinal(self.device)
        path = registry.path(ordinal)
        if self.as_json:
            from gpucache.cli.device_rows import device_row
            from gpucache.cli.terminal import print_json

            device = registry.devices[ordinal]
            print_json(device_row(device, path, ordinal))
        else:
            print_data(path)
        return 0


class EnvCall(Value, kw_only=True):
    """A call of `gpucache env`, which prints the variables that give a process this device's directory."""

    device: int | str
    root: str | None = None
    form: str = "sh"
    """``sh``, ``fish``, ``dotenv`` or ``json``."""
    caches: tuple[str, ...] | None = None
    """The JIT caches that are put into the root: ``all``, or names; None: as `GPUCACHE_CACHES` says."""

    def execute(self) -> int:
        """Print a line for each variable, or one JSON object; returns the exit code."""
        variables = self._variables()
        if self.form == "json":
            from gpucache.cli.terminal import print_json

            print_json({"variables": variables})
            return 0
        from gpucache.cli.device_rows import VARIABLE_FORMATS

        line = VARIABLE_FORMATS[self.form]
        for name, value in variables.items():
            print_data(line(name, value))
        return 0

    def _variables(self) -> dict[str, str]:
        """The device's variables, with the mark by which a later `gpucache run` may choose another device."""
        from gpucache.directories.settings import marks
        from gpucache.environment import CACHES, DISABLE, SET_BY_RUN

        if DISABLE.read(settings_of(self.root)):
            return {}
        registry = _recorded(self.root)
        ordinal = registry.ordinal(self.device)
        variables = registry.environ(ordinal)
        of_caches: dict[str, str] = {}
        if self.caches is not None or CACHES.text(settings_of(self.root)):
            of_caches = self._of_caches(registry, ordinal)
        variables |= of_caches
        return {**variables, SET_BY_RUN.name: marks(variables, of_caches)}

    def _of_caches(self, registry: DeviceCacheRegistry, ordinal: int) -> dict[str, str]:
        """The variables of the JIT caches that are chosen; says on stderr which cannot be had here."""
        from gpucache.cli.jit_words import sentences
        from gpucache.directories.jit_launch import jit_launch
        from gpucache.disk.members import base_of_others

        device = registry.devices[ordinal]
        launch = jit_launch(
            base_of_others(registry.root),
            (device,),
            os.environ,
            self.caches,
            settings_of(self.root),
        )
        for sentence in sentences(launch):
            say(f"note: {sentence}")
        return launch.variables


def _recorded(root: str | None) -> DeviceCacheRegistry:
    """The devices of this host and their directories, as its record has them: NVML is not asked."""
    from gpucache.directories.registry import DeviceCacheRegistry

    return DeviceCacheRegistry.load(root, settings_of(root))
