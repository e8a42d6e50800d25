"""The line that a miss logs: where the kernel is not, the nearest earlier entry of the same kernel, and what differs.

Imported for that line alone, which `GPUCACHE_LOG=info` asks for. It looks at 64 entries for half a second at most.
"""

from __future__ import annotations

import copy
import inspect
import json
import time

from gpucache.kernels.differences import nearest, words
from gpucache.kernels.ingredients import Ingredients, ingredients_in
from gpucache.kernels.metadata import Metadata, arch_of
from gpucache.log import INFO, tell
from gpucache.store.of_kernel import OfKernel, entries_of_kernel
from gpucache.triton.capture import is_compile, recipe_of
from gpucache.triton.fetched import running_version
from gpucache.triton.location import NO_VIEWS
from gpucache.units import ago

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Literal

    from gpucache.kernels.differences import Difference
    from gpucache.triton.location import Location
    from gpucache.triton.staged import Why

    Nearest = tuple[OfKernel, tuple[Difference, ...]]
    """An entry, and what differs from it to the kernel that is missed."""

_MOST_ENTRIES = 64
_LIMIT_S = 0.5


def tell_miss(
    location: Location, key: str, filename: str, why: Why, frame: FrameType | None
) -> None:
    """Log the miss of a key. ``frame`` is that of Triton's `compile`; None where the store was not asked.

    ``filename`` is that of the kernel's metadata in an entry. Never raises.
    """
    kernel = filename.removesuffix(".json")
    fields: dict[str, object] = {"key": key}
    near = ""
    if frame is not None and is_compile(frame):
        near = _near(location, key, filename, frame, fields)
    where = _where(location, why)
    tell(INFO, "miss: %s %s: %s%s%s", kernel, key, why, where, near, **fields)


def _where(location: Location, why: Why) -> str:
    where = ""
    if why in ("absent", "damaged", "busy"):
        where = f" in the store of {location.root}"
        if location.directory != NO_VIEWS:  # else there is no device
            where = f" in {location.directory} and{where}"
    if location.fallback is not None:
        where += f", and not had of the fallback {location.fallback}"
    return where


def _near(
    location: Location, key: str, filename: str, frame: FrameType, fields: dict[str, object]
) -> str:
    """What to say of the nearest entry; its key and what differs are added to the line's ``fields``. Never raises."""
    try:
        found = _nearest(location.root, key, filename, frame)
        if found is None:
            return ""
        if found == "none":
            return f"; the store has no other {filename.removesuffix('.json')}"
        entry, differences = found
        what = ", ".join(map(words, differences)) or "nothing differs that an entry tells"
        age = ago(max(0.0, time.time() - entry.compiled))
    except Exception as error:  # another Triton's objects, or what a value's own code raises
        return f"; the nearest entry cannot be told: {type(error).__name__}: {error}"
    fields["nearest"] = entry.key
    fields["differs"] = [each._asdict() for each in differences]
    return f"; nearest is {entry.key[:12]} of {age}: {what}"


def _nearest(
    root: str, key: str, filename: str, frame: FrameType
) -> Nearest | Literal["none"] | None:
    """The nearest entry to the kernel that a frame compiles; None where the time was over before one was seen."""
    until = time.monotonic() + _LIMIT_S
    found = entries_of_kernel(root, filename, _MOST_ENTRIES, until)
    entries = []
    others = []
    for entry in found.entries:
        made = (
            None if entry.key == key else ingredients_in(entry.path, filename.removesuffix(".json"))
        )
        if made is not None:
            entries.append(entry)
            others.append(made)
        if time.monotonic() > until:
            break
    if not others:
        return "none" if found.is_all else None
    function = frame.f_locals["src"].fn
    missed = _missed(frame, key)
    line = missed.line or 0
    best = nearest(missed, others, lambda at: _digest_at(function, at - line))
    return None if best is None else (entries[best[0]], best[1])


# ---- the kernel that is missed


def _missed(frame: FrameType, key: str) -> Ingredients:
    """The ingredients of the kernel that a frame of `compile` is about to compile."""
    seen = frame.f_locals
    target, options, function = seen["target"], seen["options"], seen["src"].fn
    # As `compile` writes them into a metadata file (3.2.0 to 3.9.0).
    said = json.loads(json.dumps(options.__dict__, default=vars))
    metadata = Metadata(
        name=seen["src"].name,
        target=f"{target.backend}:{target.arch}",
        arch=arch_of(str(said.get("arch") or target.arch)),
        triton_version=running_version(),
        hash=None,
        options=said,
        environment=dict(seen["env_vars"]),
        results={},
    )
    recipe = recipe_of(frame, key)
    return Ingredients(metadata, recipe, _file_of(function), _line_of(function))


def _file_of(function: Any) -> str:
    return str(function.fn.__code__.co_filename)


def _line_of(function: Any) -> int:
    """The line of a function's ``def``, as Triton puts it into the kernel (`get_jit_fn_file_line`, 3.2.0 to 3.9.0)."""
    lines, first = inspect.getsourcelines(function.fn)
    for number, line in enumerate(lines, start=first):
        if line.strip().startswith("def "):
            return number
    return first


def _digest_at(function: Any, further: int) -> str | None:
    """Triton's digest of a function if its file had so many lines more above all functions; None if that is not told.

    Copies are asked, as Triton asks the functions themselves (`JITFunction.cache_key`, 3.2.0 to 3.9.0): the digest of
    each has its first line, and those of the functions that it calls by the names of global variables.
    """
    names = dict(function.__globals__)
    file = _file_of(function)
    for name, value in function.__globals__.items():
        if type(value) is type(function) and _file_of(value) == file:
            names[name] = _elsewhere(value, further, names)
    digest = _elsewhere(function, further, names).cache_key
    return digest if isinstance(digest, str) else None


def _elsewhere(function: Any, further: int, names: dict[str, Any]) -> Any:
    """A copy of a function of Triton's that stands so many lines further down, among these global variables."""
    made = copy.copy(function)
    made.starting_line_number = function.starting_line_number + further
    made.__globals__ = names
    made.hash = None
    made.used_global_vals = {}  # until 3.7.1 a caller notes what these are before the function is hashed
    return made
