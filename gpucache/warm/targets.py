"""Architectures by the names that people know: ``sm_90``, ``gfx942``."""

from __future__ import annotations

import re

from gpucache.errors import ConfigurationError
from gpucache.kernels.recipe import Target


def parse_target(text: str) -> Target:
    """The target that ``sm_90``, ``sm90``, ``90`` or ``gfx942`` means.

    Raises:
        ConfigurationError: the text is no architecture.
    """
    name = text.strip().lower()
    of_nvidia = re.fullmatch(r"(?:sm_?)?([1-9][0-9]{1,2})[af]?", name)
    if of_nvidia is not None:
        return Target("cuda", int(of_nvidia[1]), 32)
    of_amd = re.fullmatch(r"gfx([0-9]{1,2})[0-9a-f]{2}", name)
    if of_amd is None:
        raise ConfigurationError("--arch", text, "an architecture like sm_90 or gfx942")
    # As `HIPOptions.__post_init__` (`triton/backends/amd/compiler.py`, 3.9.0): RDNA has 32 threads in a wave.
    warp_size = 32 if int(of_amd[1]) >= 10 else 64
    return Target("hip", name, warp_size)


def parse_targets(text: str) -> tuple[Target, ...]:
    """The targets of a list like ``sm_80,sm_90,gfx942``, each once.

    Raises:
        ConfigurationError: one of them is no architecture.
    """
    found = [parse_target(word) for word in text.split(",") if word.strip()]
    return tuple(dict.fromkeys(found))
