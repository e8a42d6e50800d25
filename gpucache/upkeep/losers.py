"""`losers`: the kernels that an autotuner has compiled and measured, and not taken.

A kernel is a loser where a result of its autotuner (`gpucache.kernels.autotune`) that is cached beside it tells so: it
has the constants and options of a configuration that lost, and those of no winner. Results do not say of which
function, device or Triton they are. So a kernel stays where that cannot be told: its recipe is missing, entries of its
name come of several functions, architectures or versions of Triton, or no result is of the types of its arguments.

A result is by the values of some arguments as well, which no entry tells. Where a program's further results are gone,
or were not kept, a kernel may go that won by one of them, and is compiled again when it is next asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from gpucache.kernels.autotune import Configuration, TuningResult, tuning_result_in
from gpucache.kernels.description import Description, describe
from gpucache.kernels.group import AUTOTUNE
from gpucache.kernels.shown_values import shown
from gpucache.report.entries import Entry

_TORCH = "torch."
_TYPES = {
    "bool": "u1",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e4m3fnuz": "fp8e4b8",
    "float8_e5m2": "fp8e5",
    "float8_e5m2fnuz": "fp8e5b16",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
}
"""Torch's types by Triton's names (`type_canonicalisation_dict` of `triton/_utils.py`, 3.4.0, 3.6.0 and 3.9.0)."""

_Standing = Literal["won", "lost", "unknown"]


class _Kernel(NamedTuple):
    """An entry of a kernel, and what is known of the kernel."""

    entry: Entry
    described: Description

    @property
    def build(self) -> tuple[str | None, ...] | None:
        """What kernels that one result is about have in common; None where that is not known of this one."""
        source = self.described.function
        if source is None or not self.described.has_recipe:
            return None
        known = (self.entry.target, self.entry.triton_version)
        return (*known, source.module, source.qualname, source.file)


def losers(entries: Sequence[Entry]) -> list[Entry]:
    """Those of the entries of a root that an autotuner has not taken, in their order. Reads entries that it tells of.

    Nothing that lies in the root makes it raise. Beside any readers, writers and removers: what goes meanwhile is no
    loser.
    """
    results = _results(entries)
    lost: set[str] = set()
    for name, told in results.items():
        kernels = _described(entries, name)
        builds = {kernel.build for kernel in kernels}
        if len(builds) == 1 and None not in builds:
            lost.update(kernel.entry.key for kernel in kernels if _standing(kernel, told) == "lost")
    return [entry for entry in entries if entry.key in lost]


def _results(entries: Iterable[Entry]) -> dict[str, list[TuningResult]]:
    """All results in a root, by the name of the kernel."""
    found: dict[str, list[TuningResult]] = {}
    for entry in entries:
        if entry.kind != "autotune":
            continue
        kernel = entry.kernel.removesuffix(AUTOTUNE)
        result = tuning_result_in(entry.copies[0].path, kernel)
        if result is not None:
            found.setdefault(kernel, []).append(result)
    return found


def _described(entries: Iterable[Entry], name: str) -> list[_Kernel]:
    """The kernels of a name; of one that cannot be read at all, nothing is known, and so nothing of its name goes."""
    found = []
    for entry in entries:
        if entry.kind != "kernel" or entry.kernel != name:
            continue
        described = describe(entry.copies[0].path, name)
        if described is not None:
            found.append(_Kernel(entry, described))
    return found


def _standing(kernel: _Kernel, results: Iterable[TuningResult]) -> _Standing:
    """What results tell of a kernel: it has won where it is the winner of any."""
    standing: _Standing = "unknown"
    for result in results:
        if not _is_of_types(result, kernel.described):
            continue
        for configuration in result.configurations:
            if _is_of(configuration, kernel.described):
                if configuration is result.winner:
                    return "won"
                standing = "lost"
    return standing


def _is_of_types(result: TuningResult, kernel: Description) -> bool:
    """Whether the arguments of a tuning had the types of a kernel's: those of torch come last in a result's key."""
    asked = []
    for text in result.key:
        if text.startswith(_TORCH):
            asked.append(_TYPES.get(text.removeprefix(_TORCH)))
    pointers: list[str | None] = []
    for dtype in kernel.dtypes.values():
        if dtype.startswith("*"):
            # ``*k`` is a pointer to what is constant.
            pointers.append(dtype.lstrip("*k"))
    return asked == pointers


def _is_of(configuration: Configuration, kernel: Description) -> bool:
    """Whether a kernel was compiled with just these constants and options, all of which it must name."""
    return _has_all(configuration.values, kernel.constants) and _has_all(
        configuration.options, kernel.options
    )


def _has_all(values: Mapping[str, Any], texts: Mapping[str, str]) -> bool:
    for name, value in values.items():
        text = _text(value)
        if text is None or texts.get(name) != text:
            return False
    return True


def _text(value: object) -> str | None:
    """A value of JSON as a description has it; None for one that stands for several in Python."""
    if value is None or isinstance(value, (bool, int, str)):
        return shown(value)
    return repr(value) if isinstance(value, float) else None
