"""What a recipe tells of a backend's options, and of the environment variables that are part of the key.

Options as `triton/backends/nvidia/compiler.py` and `amd/compiler.py` of Triton 3.2.0 to 3.9.0 parse them.
"""

from __future__ import annotations

import os.path
import sys

from gpucache.kernels.encoding import Encoder, Unencodable, as_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from types import FrameType
    from typing import Any

    from gpucache.kernels.encoding import Encoded

_APART = frozenset(("arch", "backend_name", "extern_libs"))
_FILES = ("ir_override",)
"""Options that name a file to load."""
_FROM_ENVIRONMENT = ("ptx_options",)
"""Options whose default Triton has read from the environment when it was imported (`PTXAS_OPTIONS`, from 3.6 on)."""

_MOST_KNOWN = 64
_known_options: dict[Any, dict[str, Any]] = {}
"""What backends have where nothing is said, by backend, target and variables."""


_LAUNCHER = "triton.runtime.jit"
_OF_EVERY_LAUNCH = frozenset(("debug", "instrumentation_mode", "fpsan_homomorphic_casts"))
"""What `JITFunction.run` itself adds to what a launch asks for (3.2.0 to 3.9.0)."""


def asked_options(frame: FrameType) -> AbstractSet[str]:
    """The names of what a launch was given by name, whose `run` has called ``frame``, that of `compile`.

    An option may be asked for and be the backend's own: each `triton.Config` asks for three stages, which is CUDA's
    default and not that of AMD's backend.
    """
    caller = frame.f_back
    while caller is not None and caller.f_globals.get("__name__") == _LAUNCHER:
        if caller.f_code.co_name == "run":
            asked = caller.f_locals.get("kwargs")
            return set(asked) - _OF_EVERY_LAUNCH if isinstance(asked, dict) else set()
        caller = caller.f_back
    return set()


def differing(
    options: Any,
    backend: Any,
    variables: Mapping[str, str],
    asked: AbstractSet[str],
    encoder: Encoder,
) -> dict[str, Encoded]:
    """The options that were asked for, or differ from what the backend has for its target where nothing is said.

    Raises:
        Unencodable: one of them names a file, or cannot be encoded.
    """
    ours = _unasked_options(backend, variables)
    given = options.__dict__
    _refuse_libraries(options)
    found: dict[str, Encoded] = {}
    for name, value in given.items():
        if name in _APART:
            continue
        same = name in ours and type(value) is type(ours[name]) and value == ours[name]
        is_told = name in asked or name in _FROM_ENVIRONMENT
        if same and (value is None or not is_told):
            continue
        if name in _FILES:
            raise Unencodable(f"its option {name} names a file")
        found[as_shown(name)] = encoder.encode(value)
    return found


def _refuse_libraries(options: Any) -> None:
    """Refuse a kernel that is linked with other libraries than the backend's own, which lie beside its code.

    The contents of all are part of the key; `TRITON_LIBDEVICE_PATH` and a knob that torch sets name others.

    Raises:
        Unencodable: it is.
    """
    libraries = getattr(options, "extern_libs", None)
    if not libraries:
        return
    own = os.path.dirname(type(options).__post_init__.__code__.co_filename)
    for path in dict(libraries).values():
        if not str(path).startswith(f"{own}/"):
            raise Unencodable(f"it is linked with {path}")


def _unasked_options(backend: Any, variables: Mapping[str, str]) -> dict[str, Any]:
    """The options that a launch gets which asks for nothing, under these variables."""
    asked = (type(backend), backend.target, *variables.items())
    known = _known_options.get(asked)
    if known is None:
        if len(_known_options) >= _MOST_KNOWN:
            _known_options.clear()
        known = backend.parse_options(_unasked()).__dict__
        _known_options[asked] = known
    return known


def _unasked() -> dict[str, object]:
    """What to parse for the options that a launch gets that asks for nothing.

    Triton 3.9 warns whoever asks for no `enable_fp_fusion`; so its default is asked for.
    """
    knobs = sys.modules.get("triton.knobs")
    language = getattr(knobs, "language", None)
    if hasattr(language, "fp_fusion_enabled"):
        return {"enable_fp_fusion": language.default_fp_fusion}  # type: ignore[union-attr]
    return {}


_MOST_LETTERS = 4096


def shown_variables(said: Mapping[str, str]) -> dict[str, str]:
    """The variables that are part of the key, as a copy.

    Raises:
        Unencodable: one has a value that could not be shown.
    """
    for name, value in said.items():
        if len(value) > _MOST_LETTERS or not value.isprintable():
            raise Unencodable(f"the variable {name} has no value that could be shown")
    return dict(said)
