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

COLUMNS = ("ordinal", "directory", "name", "capability", "memory", "uuid")


def device_row(device: Device, path: str, ordinal: int | None) -> dict[str, Any]:
    """A device's known fields, its directory, and its ordinal in this process if it has one."""
    known = {"fake": device.fake, **device.as_json()}
    directory = os.path.basename(path)
    return {"ordinal": ordinal, "directory": directory, "path": path, **known}


def device_rows(registry: DeviceCacheRegistry) -> list[dict[str, Any]]:
    """A row for every device of the machine."""
    ordinals = {device.uuid: ordinal for ordinal, device in enumerate(registry.devices)}
    rows = []
    for device in registry.snapshot.devices:
        path = registry.directories[device.uuid]
        rows.append(device_row(device, path, ordinals.get(device.uuid)))
    return rows


def device_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of `COLUMNS`; what is not known is ``-``."""
    capability = row.get("compute_capability")
    memory = row.get("memory_bytes")
    return (
        "-" if row["ordinal"] is None else str(row["ordinal"]),
        row["directory"],
        row.get("name") or "-",
        f"{capability[0]}.{capability[1]}" if capability else "-",
        f"{memory / 2**30:.1f} GiB" if memory else "-",
        row["uuid"],
    )


def counter_cells(values: Mapping[str, float], columns: Iterable[str]) -> tuple[str, ...]:
    """The counters as whole numbers, the seconds with one decimal."""
    cells = []
    for name in columns:
        decimals = 1 if name.endswith("_s") else 0
        cells.append(f"{values.get(name, 0):.{decimals}f}")
    return tuple(cells)


def sh(name: str, value: str) -> str:
    """A line for ``eval`` in a POSIX shell."""
    import shlex

    return f"export {name}={shlex.quote(value)}"


def fish(name: str, value: str) -> str:
    """A line for ``source`` in fish, whose single quotes know two escapes."""
    quoted = value.replace("\\", "\\\\")
    quoted = quoted.replace("'", "\\'")
    return f"set -gx {name} '{quoted}'"


def dotenv(name: str, value: str) -> str:
    """A line of a ``.env`` file, quoted only where it must be."""
    if re.fullmatch(r"[\w@%+=:,./-]*", value, re.ASCII):
        return f"{name}={value}"
    escaped = re.sub(r'([\\"$`])', r"\\\1", value)
    escaped = escaped.replace("\n", "\\n")
    return f'{name}="{escaped}"'


VARIABLE_FORMATS = {"sh": sh, "fish": fish, "dotenv": dotenv}
