"""Triton's cache manager during a replay: it answers with the manager that the replay makes for the key."""

from __future__ import annotations

from contextlib import contextmanager

from gpucache.triton.manager import DeviceCacheManager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    Answer: TypeAlias = Callable[[str], DeviceCacheManager]
    """Makes the manager of a key, or raises: then that comes out of Triton's `compile`."""

_answers: list[Answer] = []


class ReplayCacheManager(DeviceCacheManager):
    """What Triton constructs; never an object of this class, but what the innermost `answering` gives for the key."""

    __slots__ = ()

    def __new__(cls, key: str, override: bool = False, dump: bool = False) -> DeviceCacheManager:  # type: ignore[misc]
        """The manager of the key; of `TRITON_KERNEL_OVERRIDE` and ``_DUMP`` as ever."""
        if override or dump or not _answers:
            return DeviceCacheManager(key, override, dump)
        return _answers[-1](key)


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Have ``answer`` make the manager of each key until the end of the block."""
    _answers.append(answer)
    try:
        yield
    finally:
        _answers.pop()
