"""What a shell offers behind the name of an option or in the place of an argument: keys, kernels, devices.

Asked at each press of a key, so that each answer is bounded: in time, and in the number of entries that are looked at.
What cannot be read is left out, and nothing is said of it; what would not be one word of letters is not offered.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from gpucache.cli.options import DeviceType
from gpucache.errors import GpuCacheError
from gpucache.escapes import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Names = Callable[[str, str], Iterable[tuple[str, str]]]
    """Gives, for a root and the beginning of a word, words and what each means."""

_MOST = 200
"""More words than that no person reads."""
_LOOKED_AT = 2000
_TIME_S = 0.3


class _Completed(click.types.StringParamType):
    """A text, for which a shell offers names out of the root."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin as what is typed, with what each means."""
        try:
            return list(_items(self._names, _root(context), incomplete))
        except (GpuCacheError, OSError):
            return []


def with_completion(command: click.Command) -> click.Command:
    """The command, whose arguments and options of these names the shell completes."""
    for parameter in command.params:
        names = _NAMES.get(parameter.name or "")
        if names is not None and isinstance(parameter.type, _OF_NAMES):
            parameter.type = _Completed(names)
    return command


def _root(context: click.Context) -> str:
    from gpucache.configuration import in_force
    from gpucache.layout.paths import resolve_root

    root = context.params.get("root")
    return resolve_root(root, in_force(root=root).environ)


def _items(names: Names, root: str, incomplete: str) -> Iterator[CompletionItem]:
    """At most so many different words, in order."""
    found: dict[str, str] = {}
    for name, meaning in names(root, incomplete):
        if name.startswith(incomplete) and _is_one_word(name):
            found.setdefault(name, meaning)
        if len(found) >= _MOST:
            break
    for name in sorted(found):
        yield CompletionItem(name, help=_shown(found[name]))


def _is_one_word(name: str) -> bool:
    """Whether a shell takes a name as it is, and no terminal as a command: names in a root may be anybody's."""
    return (
        name.isascii()
        and name.isprintable()
        and not set(name) & set(" \t,:'\"\\$`;&|<>()*?[]{}!#~")
    )


def _shown(meaning: str) -> str | None:
    """What a word means, on one line: the end of a line would begin another word, which nobody has looked at."""
    return printable(meaning) or None


# ---- what there is


def _keys(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    for path in _entries(root, incomplete):
        yield os.path.basename(path), _kernel(path)


def _kernels(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    for path in _entries(root):
        yield _kernel(path), ""


def _kernels_and_keys(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    yield from _kernels(root, incomplete)
    if incomplete:
        yield from _keys(root, incomplete)


def _forms(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    """What a file of an entry may be called; which one an entry has is told where it has it not."""
    from gpucache.report.artefacts import DISASSEMBLED, FORMS

    for form in (*FORMS, DISASSEMBLED):
        yield form, ""


def _archs(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    from gpucache.kernels import metadata

    for path in _entries(root):
        kernel = _kernel(path)
        if kernel:
            target, _ = metadata.brief(f"{path}/{kernel}.json")
            if target is not None:
                yield metadata.arch_of(target), ""


def _directories(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    from gpucache.layout.keys import device_directories

    for name, _ in device_directories(os.path.realpath(root)):
        yield name, ""


def _devices(root: str, incomplete: str) -> Iterator[tuple[str, str]]:
    """The ordinals of this shell's devices, and their UUIDs."""
    from gpucache.directories.registry import DeviceCacheRegistry

    registry = DeviceCacheRegistry.load(root)
    for ordinal, device in enumerate(registry.devices):
        yield str(ordinal), f"{device.name} {device.uuid}"
        yield device.uuid, device.name or ""


_OF_NAMES = (click.types.StringParamType, DeviceType)
_NAMES: dict[str, Names] = {
    "key": _keys,
    "keys": _keys,
    "other": _keys,
    "name_or_key": _kernels_and_keys,
    "form": _forms,
    "kernel": _kernels,
    "arch": _archs,
    "directory": _directories,
    "device": _devices,
}
"""By the name of a parameter: who gives its words."""


def _entries(root: str, beginning: str = "") -> Iterator[str]:
    """The directories of entries whose keys begin so, of the store and then of devices, as far as time goes."""
    from gpucache.layout.keys import STORE_KEY, device_directories, shards

    end = time.monotonic() + _TIME_S
    root = os.path.realpath(root)
    places = [path for path in shards(root) if _may_have(os.path.basename(path), beginning)]
    places += [path for _, path in device_directories(root)]
    looked_at = 0
    for place in places:
        for item in _listed(place):
            looked_at += 1
            if looked_at > _LOOKED_AT or time.monotonic() > end:
                return
            if item.name.startswith(beginning) and STORE_KEY.fullmatch(item.name):
                yield item.path


def _may_have(shard: str, beginning: str) -> bool:
    """Whether a shard, which is named by the first letters of its keys, may have a key that begins so."""
    return shard.startswith(beginning) or beginning.startswith(shard)


def _listed(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as items:
            yield from items
    except OSError:
        return


def _kernel(entry: str) -> str:
    """The name of an entry's kernel, by that of the file of its metadata; empty where there is none.

    Files whose names begin with ``__`` are a group's or ours.
    """
    for item in _listed(entry):
        name = item.name
        if name.endswith(".json") and not name.startswith("__"):
            return name.removesuffix(".json")
    return ""
