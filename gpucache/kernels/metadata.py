"""What Triton says of a kernel: the metadata file ``K.json`` of an entry, and what of the environment is in its key.

One flat JSON object, written by `compiler/compiler.py` `compile` (3.2.0, 3.4.0, 3.6.0 and 3.9.0 read, and a kernel
compiled with each): ``hash``, ``target``, every field of the backend's options, the environment variables that are part
of the key, ``triton_version`` (not in 3.2), and what the stages found out, as ``shared`` and ``name``. Nothing marks
which of these a name is. Environment variables are upper case and options are not, in all of these versions.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from gpucache.disk.door import METADATA_BYTES, read_limited
from gpucache.disk.reading import read
from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


# What `get_cache_invalidating_env_vars` of Triton 3.2.0, 3.4.0, 3.6.0 and 3.9.0 gives, each asked with every upper-case
# word in its libtriton set in turn; a test asks again. The list is compiled in.
_KEY_VARIABLES = """
ALLOW_LHS_TMEM_LAYOUT_CONVERSION AMDGCN_ENABLE_DUMP AMDGCN_USE_BUFFER_ATOMICS AMDGCN_USE_BUFFER_OPS
DISABLE_FAST_REDUCTION DISABLE_LLVM_OPT DISABLE_MMA_V3 DISABLE_MMA_V5 DISABLE_PTXAS_OPT LLVM_ENABLE_TIMING
LLVM_EXTRACT_DI_LOCAL_VARIABLES LLVM_IR_ENABLE_DUMP LLVM_PASS_PLUGIN_PATH MLIR_DISABLE_MULTITHREADING MLIR_DUMP_PATH
MLIR_ENABLE_DIAGNOSTICS MLIR_ENABLE_DUMP MLIR_ENABLE_TIMING NVPTX_ENABLE_DUMP STORE_TMEM_TO_GLOBAL_BYPASS_SMEM
TRITON_CONSAN_INIT_ALLOCATIONS TRITON_DEFAULT_FP_FUSION TRITON_DISABLE_LINE_INFO
TRITON_DISABLE_RESHAPE_ENCODING_INFERENCE TRITON_DUMP_MIR TRITON_ENABLE_ASAN TRITON_ENABLE_EXPERIMENTAL_CONSAN
TRITON_ENABLE_LLVM_DEBUG TRITON_F32_DEFAULT TRITON_FORCE_DISABLE_FP_FUSION TRITON_HIP_GLOBAL_PREFETCH
TRITON_HIP_LOCAL_PREFETCH TRITON_HIP_USE_ASYNC_COPY TRITON_HIP_USE_BLOCK_PINGPONG TRITON_HIP_USE_COEXEC_SCHEDULER
TRITON_HIP_USE_EXPERT_SCHEDULING TRITON_HIP_USE_IN_THREAD_TRANSPOSE TRITON_LLVM_DEBUG_ONLY TRITON_OVERRIDE_ARCH
TRITON_PARTITION_SCHEDULING_DUMP_DATA_ONLY TRITON_PARTITION_SCHEDULING_DUMP_LOOP_ONLY
TRITON_PARTITION_SCHEDULING_ENABLE_DUMP_DOT TRITON_PLUGIN_PATHS TRITON_PLUGIN_VERSION_CHECK USE_IR_LOC
"""
KEY_VARIABLES = frozenset(_KEY_VARIABLES.split())
"""The environment variables that are part of the key in some Triton from 3.2 to 3.9, as soon as they are not empty."""

# What `backends/*/compiler.py` of the same four versions assigns to ``metadata``, beside options that it overwrites.
_RESULTS = """
name shared tmem_size tensordesc_meta
global_scratch_size global_scratch_align profile_scratch_size profile_scratch_align
"""
_RESULT_NAMES = frozenset(_RESULTS.split())
_APART = ("hash", "target", "triton_version")
"""Fields of a metadata file that are neither options nor variables nor results."""
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_MOST_COUNT = 2**63


class Metadata(Value, kw_only=True):
    """A compiled kernel, as its metadata file has it."""

    name: str
    """The symbol in the binary. The files of the entry are named after the source, which may be longer."""
    target: str
    """``cuda:90``, ``hip:gfx942``: what was compiled for, before `TRITON_OVERRIDE_ARCH`."""
    arch: str
    """``sm_90``, ``gfx942``: what the code is for; the option wins, which `TRITON_OVERRIDE_ARCH` sets."""
    triton_version: str | None
    """None where Triton does not say (3.2)."""
    hash: str | None
    """SHA-256 of all that the key is made of, in hexadecimal; the key is the same number in base 32 or 64."""
    options: Mapping[str, Any]
    """The backend's options by name. A stage may have changed one: warp specialisation raises ``num_warps``."""
    environment: Mapping[str, str]
    """The variables that are part of the key, as `key_environment` has them."""
    results: Mapping[str, Any]
    """What the compile found out: fields that are known by name, and all fields after ``triton_version``."""

    @classmethod
    def parse(cls, text: str | bytes) -> Metadata:
        """Read a metadata file.

        Raises:
            ValueError: the text is no metadata of a kernel.
        """
        said = _decoded(text)
        target, name = _identity(said)
        results: dict[str, Any] = {}
        options: dict[str, Any] = {}
        environment: dict[str, str] = {}
        is_late = False  # Triton writes ``triton_version`` just before the stages run
        for field, value in said.items():
            if is_late or field in _RESULT_NAMES:
                results[field] = value
            elif field in _APART:
                is_late = field == "triton_version"
            elif field.isupper() and _VARIABLE.fullmatch(field):
                environment[field] = str(value)
            else:
                options[field] = value
        arch = _text(said.get("arch")) or target
        return cls(
            name=name,
            target=target,
            arch=arch_of(arch),
            triton_version=_text(said.get("triton_version")),
            hash=_text(said.get("hash")),
            options=options,
            environment=environment,
            results=results,
        )

    @property
    def shared_bytes(self) -> int | None:
        """Shared memory per block, in bytes; all that Triton uses is dynamic, so that the binary does not say it."""
        return count(self.results.get("shared"))


def metadata_at(path: str) -> Metadata | None:
    """Read a metadata file; None for what cannot be read, is longer than any such file, or is none. Never raises."""
    try:
        return Metadata.parse(read(path, METADATA_BYTES))
    except (OSError, ValueError):
        return None


def brief(path: str) -> tuple[str | None, str | None]:
    """Read only the target and Triton's version from a metadata file, as `target_and_version`. Never raises.

    None twice for a file that cannot be read.
    """
    try:
        return target_and_version(read_limited(path, METADATA_BYTES))
    except OSError:
        return None, None


def target_and_version(text: str | bytes) -> tuple[str | None, str | None]:
    """The target (``cuda:90``) and Triton's version in a metadata file; None for what is not said. Never raises."""
    try:
        said = _decoded(text)
    except ValueError:
        return None, None
    version = _text(said.get("triton_version"))
    return _target(said), version


def arch_of(target: str) -> str:
    """The architecture of a target, or of the option of that name (3.4 and later): ``sm_90``, ``gfx942``.

    >>> arch_of("cuda:90"), arch_of("sm90"), arch_of("hip:gfx942")
    ('sm_90', 'sm_90', 'gfx942')
    """
    arch = target.rpartition(":")[2]
    number = arch.removeprefix("sm").removeprefix("_")
    return f"sm_{number}" if number[:1].isdigit() else arch


def key_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of an environment is part of the key, in Triton's form: ``true``, ``false`` or the text itself.

    As `get_cache_invalidating_env_vars` of Triton 3.2.0 to 3.9.0: ``1``, ``on`` and ``true`` are one value, in any
    case; ``0``, ``off`` and ``false`` another, which is not that of a variable that is not set; ``""`` is not set.
    """
    found = {}
    for name in sorted(KEY_VARIABLES & environ.keys()):
        value = environ[name]
        if value:
            found[name] = _normal(value)
    return found


def _normal(value: str) -> str:
    """The form in which Triton puts the value of a variable into the key."""
    word = value.lower()
    if word in ("1", "on", "true"):
        return "true"
    if word in ("0", "off", "false"):
        return "false"
    return value


def hash_in(text: str | bytes) -> str | None:
    """The kernel's hash in a metadata file, as `Metadata.hash`; of the rest only target and name are looked at.

    Raises:
        ValueError: the text is no metadata of a kernel.
    """
    said = _decoded(text)
    _identity(said)
    return _text(said.get("hash"))


class Brief(NamedTuple):
    """The little of a metadata file that tells which kernel it is of."""

    hash: str | None
    """As `Metadata.hash`."""
    target: str
    """``cuda:90``."""
    triton_version: str | None
    """None where Triton does not say it (3.2)."""


def identity_in(text: str | bytes) -> Brief:
    """Of which kernel a metadata file is.

    Raises:
        ValueError: the text is no metadata of a kernel.
    """
    said = _decoded(text)
    target, _ = _identity(said)
    return Brief(_text(said.get("hash")), target, _text(said.get("triton_version")))


def _identity(said: Mapping[str, Any]) -> tuple[str, str]:
    """Target and name, which every metadata file has.

    Raises:
        ValueError: one of them is missing.
    """
    target = _target(said)
    name = said.get("name")
    if target is None or not isinstance(name, str):
        raise ValueError("not the metadata of a kernel: no target or no name")
    return target, name


def _decoded(text: str | bytes) -> dict[str, Any]:
    """Decode a metadata file.

    Raises:
        ValueError: the text is not JSON, or no JSON object.
    """
    try:
        said = json.loads(text)
    except RecursionError as error:
        raise ValueError("not the metadata of a kernel: nested too deep") from error
    if not isinstance(said, dict):
        raise ValueError("not the metadata of a kernel: no JSON object")
    return said


def _target(said: Mapping[str, Any]) -> str | None:
    """The target as ``backend:arch``; None where the metadata has none of this shape."""
    target = said.get("target")
    if not isinstance(target, dict) or "arch" not in target:
        return None
    backend = target.get("backend")
    if not isinstance(backend, str):
        return None
    return f"{backend}:{target['arch']}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def count(value: object) -> int | None:
    """A number that somebody has written down; None for what is none, or more than 64 bits hold."""
    return value if type(value) is int and abs(value) < _MOST_COUNT else None
