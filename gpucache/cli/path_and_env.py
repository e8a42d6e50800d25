"""What `gpucache path` and `gpucache env` do: they print a device's directory, or its variables. Imports no click.

The command line has been read by `quick`, or by click in `path_and_env_options`.
"""

from __future__ import annotations

from gpucache.cli.settings import settings_of
from gpucache.cli.terminal import print_data
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.directories.registry import DeviceCacheRegistry


class PathCall(Value, kw_only=True):
    """A call of `gpucache path`, which prints the directory of the device with this CUDA ordinal."""

    ordinal: int
    root: str | None = None
    as_json: bool = False

    def execute(self) -> int:
        """Print the directory, or as JSON all that is known of the device; returns the exit code."""
        registry = _recorded(self.root)
        path = registry.path(self.ordinal)
        if self.as_json:
            from gpucache.cli.device_rows import device_row
            from gpucache.cli.terminal import print_json

            device = registry.devices[self.ordinal]
            print_json(device_row(device, path, self.ordinal))
        else:
            print_data(path)
        return 0


class EnvCall(Value, kw_only=True):
    """A call of `gpucache env`, which prints the variables that give a process this device's directory."""

    ordinal: int
    root: str | None = None
    form: str = "sh"
    """``sh``, ``fish``, ``dotenv`` or ``json``."""

    def execute(self) -> int:
        """Print a line for each variable, or one JSON object; returns the exit code."""
        variables = self._variables()
        if self.form == "json":
            from gpucache.cli.terminal import print_json

            print_json(variables)
            return 0
        from gpucache.cli.device_rows import VARIABLE_FORMATS

        line = VARIABLE_FORMATS[self.form]
        for name, value in variables.items():
            print_data(line(name, value))
        return 0

    def _variables(self) -> dict[str, str]:
        """The device's variables, with the mark by which a later `gpucache run` may choose another device."""
        from gpucache.directories.settings import marks
        from gpucache.environment import DISABLE, SET_BY_RUN

        if DISABLE.read(settings_of(self.root)):
            return {}
        registry = _recorded(self.root)
        variables = registry.environ(self.ordinal)
        return {**variables, SET_BY_RUN.name: marks(variables)}


def _recorded(root: str | None) -> DeviceCacheRegistry:
    """The devices of this host and their directories, as its record has them: NVML is not asked."""
    from gpucache.directories.registry import DeviceCacheRegistry

    return DeviceCacheRegistry.load(root, settings_of(root))
