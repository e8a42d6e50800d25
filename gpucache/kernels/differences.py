"""`differences`: in what the ingredients of two kernels differ; `nearest`: the kernel from which one differs least.

All of it is pure. `gpucache.diagnosis.difference` compares what was compiled as well.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from gpucache.kernels.ingredients import Ingredients
from gpucache.kernels.shown_values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Literal

    from gpucache.kernels.metadata import Metadata
    from gpucache.kernels.recipe import Recipe

    Kind = Literal[
        "kernel",
        "target",
        "triton",
        "environment",
        "option",
        "constant",
        "signature",
        "global",
        "source",
        "code",
        "location",
        "assembler",
        "unseen",
    ]
    Rekey = Callable[[int], str | None]
    """Tells the digest that the second kernel's function would have if it began at another line."""

# What `parse_options` of `backends/nvidia/compiler.py` (3.9.0) derives from the target.
_OF_THE_TARGET = """
arch supported_fp8_dtypes deprecated_fp8_dot_operand_dtypes deprecated_fp8_dtypes max_num_imprecise_acc_default
"""
_LIBRARIES = "extern_libs"
"""The option of paths of libraries, whose content is in the key; who can read them compares that."""
_WEIGHTS = {"kernel": 100, "target": 16, "triton": 8, "source": 6, "signature": 3, "environment": 2}
"""How far apart a difference of a kind puts two kernels; all others count 1."""
_DIGEST_LETTERS = 64


class Difference(NamedTuple):
    """One thing that two kernels do not have in common."""

    kind: Kind
    """``kernel`` (they are not of one kernel), ``target`` (a device, or `TRITON_OVERRIDE_ARCH`), ``triton`` (its
    version), ``environment`` (a variable that is part of the key), ``option``, ``constant`` (of a parameter),
    ``signature`` (an argument's type or divisibility; a value that was 1), ``global`` (a variable that the function
    reads), ``source`` (of the function, or of one that it calls), ``code`` (the first line of what Triton made of the
    source that differs; its name is the line of Python, or empty), ``location`` (the same code at another line),
    ``assembler`` (another ptxas), ``unseen`` (the text of one was removed, so that more may differ)."""
    name: str
    """Which variable, option, parameter or file of that kind."""
    a: str | None
    """What the first kernel has; None where it has no such thing."""
    b: str | None


def differences(
    a: Ingredients, b: Ingredients, rekey: Rekey | None = None
) -> tuple[Difference, ...]:
    """In what two kernels differ, as far as their ingredients tell; what only follows from another target is left out.

    ``rekey`` tells whether the second is the same source at another line; without it, another line is told beside
    another source wherever Triton's digest does not tell the two apart (3.6 and later).
    """
    found = [*_identities(a, b)]
    found += _environments(a.metadata, b.metadata)
    found += _options(a.metadata, b.metadata)
    if a.recipe is not None and b.recipe is not None:
        found += _arguments(a, b)
        found += _sources(a, b, a.recipe, b.recipe, rekey)
    return tuple(found)


def distance(found: Iterable[Difference]) -> int:
    """How far apart two kernels are that differ so: 0 for none."""
    return sum(_WEIGHTS.get(each.kind, 1) for each in found)


def nearest(
    one: Ingredients, others: Iterable[Ingredients], rekey: Rekey | None = None
) -> tuple[int, tuple[Difference, ...]] | None:
    """The number of the kernel from which one differs least, of several such the first, and what differs from it."""
    best: tuple[int, tuple[Difference, ...]] | None = None
    least = 0
    for number, other in enumerate(others):
        found = differences(other, one, rekey)
        away = distance(found)
        if best is None or away < least:
            best, least = (number, found), away
    return best


# ---- what the metadata say


def _identities(a: Ingredients, b: Ingredients) -> Iterator[Difference]:
    """Compare name, target, architecture and version."""
    one, other = a.metadata, b.metadata
    if one.name != other.name:
        yield Difference("kernel", "name", one.name, other.name)
    if one.target != other.target:
        yield Difference("target", "target", one.target, other.target)
    elif one.arch != other.arch:
        yield Difference("target", "arch", one.arch, other.arch)
    if a.triton_version != b.triton_version:
        yield Difference("triton", "triton_version", a.triton_version, b.triton_version)


def _environments(a: Metadata, b: Metadata) -> Iterator[Difference]:
    return _compared("environment", a.environment, b.environment)


def _compared(kind: Kind, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    """Compare two mappings, name by name, in the order of the second."""
    for name in dict.fromkeys((*b, *a)):
        one = a.get(name)
        other = b.get(name)
        if one != other:
            yield Difference(kind, name, one, other)


def _options(a: Metadata, b: Metadata) -> Iterator[Difference]:
    for name in _comparable_options(a, b):
        if a.options.get(name) != b.options.get(name):
            yield Difference("option", name, _text(a, name), _text(b, name))


def _comparable_options(a: Metadata, b: Metadata) -> list[str]:
    """Name the options that tell of a choice, and do not follow from the target or from Triton's version."""
    names = a.options.keys() & b.options.keys()
    if are_of_one_compiler(a, b):
        names = a.options.keys() | b.options.keys()
    is_one_target = (a.target, a.arch) == (b.target, b.arch)
    following = ["arch"]
    if not is_one_target:
        following = _OF_THE_TARGET.split()
    return sorted(names.difference(following, [_LIBRARIES]))


def are_of_one_compiler(a: Metadata, b: Metadata) -> bool:
    """Whether one version of one backend has compiled both, so that they have the same options."""
    return a.triton_version == b.triton_version and _backend(a) == _backend(b)


def _backend(metadata: Metadata) -> str:
    return metadata.target.partition(":")[0]


def _text(metadata: Metadata, option: str) -> str | None:
    """An option's value as JSON; None where the kernel has no such option."""
    if option not in metadata.options:
        return None
    return json.dumps(metadata.options[option])


# ---- what the recipes say


def _arguments(a: Ingredients, b: Ingredients) -> Iterator[Difference]:
    """Compare constants and types; a parameter that is a constant of one kernel only has become 1, or is no more."""
    one, other = a.constants, b.constants
    types, other_types = a.types, b.types
    mixed = (one.keys() & other_types.keys()) | (other.keys() & types.keys())
    for name in dict.fromkeys((*other, *one)):
        if name in mixed:
            before = types.get(name, one.get(name))
            after = other_types.get(name, other.get(name))
            yield Difference("signature", name, before, after)
    yield from _compared("constant", _without(one, mixed), _without(other, mixed))
    yield from _functions(a, b)
    yield from _compared("signature", _without(types, mixed), _without(other_types, mixed))


def _functions(a: Ingredients, b: Ingredients) -> Iterator[Difference]:
    """Tell of functions that are constants of both kernels by one name, and whose sources differ."""
    one, other = _function_keys(a), _function_keys(b)
    for name in other:
        if name in one and one[name] != other[name]:
            yield Difference("source", name, one[name][:12], other[name][:12])


def _function_keys(kernel: Ingredients) -> dict[str, str]:
    """The digests of the functions among the constants of a kernel, by their names."""
    found = {}
    for _, value in () if kernel.recipe is None else kernel.recipe.constants:
        if type(value) is dict and "function" in value:
            _, qualname, _, digest = value["function"]
            found[qualname] = digest
    return found


def _without(values: Mapping[str, str], names: set[str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


def _sources(
    a: Ingredients, b: Ingredients, one: Recipe, other: Recipe, rekey: Rekey | None
) -> Iterator[Difference]:
    """Compare the functions: where they stand, what they read beside arguments, and whether their source is one."""
    if not a.cache_key or not b.cache_key or a.cache_key == b.cache_key:
        return
    is_comparable = a.triton_version == b.triton_version
    if not is_comparable:
        return  # each version has a digest of its own
    of_globals = [*_globals(one, other)]
    yield from of_globals
    moved = [*_moved(a, b)]
    yield from moved
    is_same = _is_same_source(a, b, rekey) if moved else None
    if is_same is None:
        is_same = bool(of_globals) and not moved
    if not is_same:
        function = other.function
        yield Difference("source", function.qualname, a.cache_key[:12], b.cache_key[:12])


def _globals(a: Recipe, b: Recipe) -> Iterator[Difference]:
    one = {(each.module, each.name): shown(each.value) for each in a.globals}
    other = {(each.module, each.name): shown(each.value) for each in b.globals}
    for place in other:
        if place in one and one[place] != other[place]:
            yield Difference("global", place[1], one[place], other[place])


def _moved(a: Ingredients, b: Ingredients) -> Iterator[Difference]:
    """Tell if the functions begin at two lines."""
    if a.line is None or b.line is None or a.line == b.line:
        return
    yield Difference("location", "line", f"{a.file}:{a.line}", f"{b.file}:{b.line}")


def _is_same_source(a: Ingredients, b: Ingredients, rekey: Rekey | None) -> bool | None:
    """Whether two functions that begin at two lines are one but for that; None where nothing tells.

    Until 3.4 the digest is that of the source, with the line behind it; a function that it calls may have moved too.
    """
    one, other = a.cache_key, b.cache_key
    has_line = len(one) > _DIGEST_LETTERS and len(other) > _DIGEST_LETTERS
    if has_line and one[:_DIGEST_LETTERS] == other[:_DIGEST_LETTERS]:
        return True
    if rekey is None or a.line is None:
        return None
    return rekey(a.line) == one


# ---- in words


def words(found: Difference) -> str:
    """A difference on one line, the first kernel before the second: ``BLOCK_K 32 -> 64``."""
    a = "unset" if found.a is None else found.a
    b = "unset" if found.b is None else found.b
    if found.kind == "location":
        return _moved_words(a, b)
    if found.kind == "source":
        return f"source of {found.name} or a callee"
    if found.kind == "code":
        return f"first in {found.name}" if found.name else "its code"
    if found.kind == "unseen":
        return "the text of one was removed, and more may differ"
    names = {"target": "", "triton": "Triton ", "kernel": "kernel ", "assembler": "ptxas "}
    name = names.get(found.kind, f"{found.name} ")
    return f"{name}{a} -> {b}"


def _moved_words(a: str, b: str) -> str:
    """``tune.py:9 was line 8``; with the other file where that is another one."""
    file, _, line = a.rpartition(":")
    other_file, _, other_line = b.rpartition(":")
    if file == other_file:
        return f"{os.path.basename(other_file)}:{other_line} was line {line}"
    if os.path.basename(file) != os.path.basename(other_file):
        file, other_file = os.path.basename(file), os.path.basename(other_file)
    return f"{other_file}:{other_line} was {file}:{line}"
