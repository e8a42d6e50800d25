"""What serving engines and compilers do to the variables of Triton and torch, taken from their sources.

vLLM 0.33.0 (`vllm/compilation/compiler_interface.py`), SGLang 0.5.23 (`sglang/srt/environ.py`,
`sglang/srt/compilation/compiler_interface.py`, `sglang/multimodal_gen/runtime/managers/gpu_worker.py`), Helion 1.5.1
(`helion/_compiler/triton/backend.py`, `helion/autotuner/local_cache.py`). What each asks of other modules of its own is
in the first lines; the rest is word for word.
"""

import contextlib
import os
import tempfile
from pathlib import Path

HOME = os.environ.get("REDIRECTS_HOME", "/nowhere")
VLLM = os.path.join(HOME, "vllm", "torch_compile_cache", "abc", "rank_0_0")
SGLANG = os.path.join(HOME, "sglang")
SGLANG_MODEL = os.path.join(SGLANG, "torch_compile_cache", "abc", "rank_0_0")
SGLANG_DIFFUSION = os.path.join(HOME, "sgl_diffusion")

_last_inductor_triton_cache_dir = None


def vllm(base_cache_dir=VLLM):
    """`initialize_inductor_cache`."""
    global _last_inductor_triton_cache_dir
    inductor_cache = os.path.join(base_cache_dir, "inductor_cache")
    os.makedirs(inductor_cache, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = inductor_cache
    triton_cache = os.environ.get("TRITON_CACHE_DIR")
    if triton_cache is None or triton_cache == _last_inductor_triton_cache_dir:
        triton_cache = os.path.join(base_cache_dir, "triton_cache")
        _last_inductor_triton_cache_dir = triton_cache
    os.makedirs(triton_cache, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = triton_cache


def third_party_cache_defaults():
    base = os.path.expanduser(SGLANG)
    return {
        "TRITON_CACHE_DIR": os.path.join(base, "triton"),
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(base, "inductor"),
    }


def sglang():
    """`redirect_third_party_caches`, as ``import sglang`` does."""
    for key, value in third_party_cache_defaults().items():
        os.environ.setdefault(key, value)


def sglang_compile(base_cache_dir=SGLANG_MODEL):
    """`InductorAdaptor.initialize_cache`."""
    inductor_cache = os.path.join(base_cache_dir, "inductor_cache")
    os.makedirs(inductor_cache, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = inductor_cache
    triton_cache = os.path.join(base_cache_dir, "triton_cache")
    os.makedirs(triton_cache, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = triton_cache


def sglang_diffusion():
    """`_configure_persistent_torch_compile_cache`."""
    compile_cache_root = os.path.join(SGLANG_DIFFUSION, "torch_compile_cache")
    tmp_root = tempfile.gettempdir()
    sglang_defaults = third_party_cache_defaults()
    for env_name, sub in (
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("TRITON_CACHE_DIR", "triton"),
    ):
        current = os.environ.get(env_name)
        if (
            current
            and current != sglang_defaults.get(env_name)
            and not current.startswith(tmp_root)
        ):
            continue
        cache_path = os.path.join(compile_cache_root, sub)
        os.makedirs(cache_path, exist_ok=True)
        os.environ[env_name] = cache_path


def get_helion_cache_dir():
    if (user_path := os.environ.get("HELION_CACHE_DIR")) is not None:
        return Path(user_path)
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", HOME)) / "helion"  # torch's cache_dir()


def helion(device_index=0):
    """`setup_compile_cache_dir`."""
    if "TRITON_CACHE_DIR" not in os.environ:
        os.environ["TRITON_CACHE_DIR"] = str(get_helion_cache_dir() / "triton" / str(device_index))


@contextlib.contextmanager
def helion_tuning():
    """`_ephemeral_triton_cache`."""
    saved = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="helion_autotune_") as ephemeral:
        os.environ["TRITON_CACHE_DIR"] = ephemeral
        try:
            yield
        finally:
            if saved is not None:
                os.environ["TRITON_CACHE_DIR"] = saved
            else:
                os.environ.pop("TRITON_CACHE_DIR", None)
