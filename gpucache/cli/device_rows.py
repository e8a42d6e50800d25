"""How `devices`, `path`, `env` and `stats` show values: rows for JSON, cells for tables, lines for shells."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from gpucache.directories.registry import DeviceCacheRegistry
    from gpucache.machine.device import Device

    Row = dict[str, Any]


def device_row(device: Device, path: str, ordinal: int | None) -> Row:
    """A device's known fields, its directory, and its ordinal in this process; no ordinal for a device CUDA hides."""
    return {
        "ordinal": ordinal,
        "directory": os.path.basename(path),
        "path": path,
        "fake": device.fake,
        **device.as_json(),
    }


def device_rows(registry: DeviceCacheRegistry) -> list[Row]:
    """A row for every device of the machine."""
    ordinals = {}
    for ordinal, device in enumerate(registry.devices):
        ordinals[device.uuid] = ordinal
    rows = []
    for device in registry.snapshot.devices:
        path = registry.directories[device.uuid]
        ordinal_or_none = ordinals.get(device.uuid)
        rows.append(device_row(device, path, ordinal_or_none))
    return rows


def device_cells(row: Row) -> tuple[str, ...]:
    """Ordinal, directory, name, capability, memory and UUID; what is not known is ``-``."""
    ordinal = row["ordinal"]
    capability = row.get("compute_capability")
    memory = row.get("memory_bytes")
    return (
        "-" if ordinal is None else str(ordinal),
        row["directory"],
        row.get("name") or "-",
        f"{capability[0]}.{capability[1]}" if capability else "-",
        f"{memory / 2**30:.1f} GiB" if memory else "-",
        row["uuid"],
    )


def counter_cells(values: Mapping[str, float], columns: Iterable[str]) -> tuple[str, ...]:
    """The cells of these columns of `gpucache stats`: counters as whole numbers, seconds with one decimal."""
    cells = []
    for name in columns:
        decimals = 1 if name.endswith("_s") else 0
        cells.append(f"{values.get(name, 0):.{decimals}f}")
    return tuple(cells)


def sh(name: str, value: str) -> str:
    """A line that sets a variable, for ``eval`` in a POSIX shell."""
    import shlex

    return f"export {name}={shlex.quote(value)}"


def fish(name: str, value: str) -> str:
    """A line that sets a variable, for ``source`` in fish, whose single quotes know two escapes."""
    quoted = value.replace("\\", "\\\\")
    quoted = quoted.replace("'", "\\'")
    return f"set -gx {name} '{quoted}'"


def dotenv(name: str, value: str) -> str:
    """A line that sets a variable in a ``.env`` file. The value is quoted only where that is necessary."""
    if re.fullmatch(r"[\w@%+=:,./-]*", value, re.ASCII):
        return f"{name}={value}"
    escaped = re.sub(r'([\\"$`])', r"\\\1", value)
    escaped = escaped.replace("\n", "\\n")
    return f'{name}="{escaped}"'


VARIABLE_FORMATS = {"sh": sh, "fish": fish, "dotenv": dotenv}
