"""The table of every JIT cache that a GPU node has beside Triton's and TorchInductor's: one row a software.

What a field means says `layout.jit_cache.JitCache`. Each fact was seen with the versions that a row names, on Linux,
CPython 3.11, without a GPU (*run*), or read in the source of these versions (*read*). Nothing here looks at the disk or
at an environment.
"""

from __future__ import annotations

from gpucache.environment import CACHES, INDUCTOR_ROOT, TRITON_DIRECTORY
from gpucache.errors import ConfigurationError
from gpucache.layout.jit_cache import JitCache, Unit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_DIRECTORY = "{directory}"
_NINJA = "build.ninja holds absolute paths"
_SHELL = " \t\n$`'\"\\;&|<>()*?[]{}#!~"
"""Letters that a shell does not take as they are."""

JIT_CACHES: tuple[JitCache, ...] = (
    JitCache(
        name="flashinfer",
        software="flashinfer-python",
        versions="0.7.2.post1",
        variables=(("FLASHINFER_WORKSPACE_BASE", _DIRECTORY),),
        default="{home}/.cache/flashinfer",
        appended=".cache/flashinfer",
        holds="libraries of attention kernels, by version and architecture; cubins",
        units=(
            Unit(
                pattern=".cache/flashinfer/*/*/cached_ops/*/",
                lock="tmp/{stem}.lock",
                not_units=("tmp",),
            ),
            Unit(
                pattern=".cache/flashinfer/*/cached_ops/*/",
                lock="tmp/{stem}.lock",
                not_units=("tmp",),
            ),
        ),
        cold_start="one compiles",
        mends_itself=False,
        moves=False,
        moves_because=_NINJA,
        needs_local=True,
        not_quoted=" $:\n",
        read_at="import",
        module="flashinfer",
        source="read: jit/env.py, jit/core.py; run: a module built by nvcc; locks over NFS: flashinfer #3777, #4062",
    ),
    JitCache(
        name="flashinfer-cubins",
        software="flashinfer-python",
        versions="0.7.2.post1",
        variables=(("FLASHINFER_CUBIN_DIR", _DIRECTORY),),
        kind="named-only",
        reason="hides the cubins that the package flashinfer-cubin has installed",
        default="(the package flashinfer-cubin, else below flashinfer's cache)",
        holds="downloaded cubins",
        units=(),
        cold_start="not known",
        mends_itself=None,
        moves=True,
        read_at="import",
        module="flashinfer",
        source="read: jit/env.py, _get_cubin_dir",
    ),
    JitCache(
        name="deepgemm",
        software="deep_gemm",
        versions="main at 06a6ae2",
        variables=(("DG_JIT_CACHE_DIR", _DIRECTORY),),
        also=("DJ_JIT_CACHE_DIR",),
        default="{home}/.deep_gemm",
        holds="a cubin a kernel",
        units=(Unit(pattern="cache/kernel.*/"),),
        staged=("tmp/*/",),
        cold_start="each compiles",
        mends_itself=None,
        moves=True,
        needs_directory=True,
        needs_local=True,
        not_quoted=_SHELL,
        read_at="import",
        module="deep_gemm",
        source="read: csrc/jit/compiler.hpp; ranks race over NFS: deepgemm #301, sglang #27604; import: vllm #39913",
    ),
    JitCache(
        name="trtllm-deepgemm",
        software="flashinfer-python, TensorRT-LLM",
        versions="0.7.2.post1, by FlashInfer's copy",
        variables=(("TRTLLM_DG_CACHE_DIR", _DIRECTORY),),
        default="{home}/.tensorrt_llm",
        holds="a cubin a shape, for sm_90a; names have shapes alone, neither version nor source",
        units=(Unit(pattern="cache/*/"),),
        staged=("tmp/*/",),
        cold_start="each compiles",
        mends_itself=None,
        moves=True,
        not_quoted=_SHELL,
        read_at="use",
        source="read: csrc/nv_internal/tensorrt_llm/deep_gemm/compiler.cuh, getDefaultUserDir and build",
    ),
    JitCache(
        name="tilelang",
        software="tilelang",
        versions="0.1.15",
        variables=(("TILELANG_CACHE_DIR", _DIRECTORY),),
        default="{home}/.tilelang/cache",
        holds="a library a kernel, by version and platform; results of tuning",
        units=(Unit(pattern="*/*/kernels/*/"), Unit(pattern="*/*/autotuner/*/")),
        staged=("*/*/.staging/*/*/",),
        cold_start="each compiles",
        mends_itself=True,
        moves=True,
        read_at="use",
        source="run; read: env.py, cache/kernel_cache.py, autotuner/tuner.py",
    ),
    JitCache(
        name="cute-dsl",
        software="nvidia-cutlass-dsl",
        versions="4.8.1",
        variables=(("CUTE_DSL_CACHE_DIR", _DIRECTORY),),
        default="{tmp}/{user}/cutlass_python_cache",
        holds="MLIR of what was called; `cute.compile` keeps nothing",
        units=(Unit(pattern="*.mlir"),),
        staged=("tmp.pid_*/",),
        cold_start="each compiles",
        mends_itself=True,
        moves=True,
        read_at="use",
        source="run; cutlass #3398, #3402",
    ),
    JitCache(
        name="flash-attention",
        software="flash-attn-4",
        versions="4.0.0b36",
        variables=(
            ("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", _DIRECTORY),
            ("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1"),
        ),
        kind="named-only",
        reason="switches FlashAttention's persistent cache on, which is off",
        default="(off)",
        holds="an object file a kernel, by a fingerprint of the sources",
        level="arch",
        units=(
            Unit(pattern="*/*.o", lock="{stem}.lock"),
            Unit(pattern="*/*/*.o", lock="{stem}.lock"),
        ),
        staged=("*/.*.tmp.o", "*/*/.*.tmp.o"),
        cold_start="each compiles",
        mends_itself=True,
        moves=True,
        read_at="import",
        module="flash_attn.cute",
        source="read: cute/cache_utils.py; some keys lack the architecture: cute/interface.py",
    ),
    JitCache(
        name="quack",
        software="quack-kernels",
        versions="0.6.5",
        variables=(("QUACK_CACHE_DIR", _DIRECTORY),),
        default="{tmp}/{user}/quack_cache",
        holds="an object file a kernel, by a fingerprint of the sources; results of tuning",
        units=(Unit(pattern="*/*.o", lock="{stem}.lock"), Unit(pattern="*/*.autotune.json")),
        staged=("*/*.o.tmp.{number}",),
        cold_start="one compiles",
        mends_itself=True,
        moves=True,
        read_at="import",
        module="quack",
        source="read: cache/__init__.py, cache/jit.py, autotuner.py (which reads the variable at use)",
    ),
    JitCache(
        name="tvm-ffi",
        software="apache-tvm-ffi",
        versions="0.1.12, 0.1.15.post2",
        variables=(("TVM_FFI_CACHE_DIR", _DIRECTORY),),
        default="{cache}/tvm-ffi",
        holds="a build directory with a library a module",
        units=(Unit(pattern="*/", lock="{stem}/lock"),),
        cold_start="one compiles",
        mends_itself=False,
        moves=False,
        moves_because=_NINJA,
        needs_local=True,
        not_quoted=" $\n",
        expands_home=True,
        read_at="use",
        source="run; libraries are linked in place, which gives ESTALE over NFS: tvm-ffi #667, sglang #31347",
    ),
    JitCache(
        name="torch-extensions",
        software="torch",
        versions="2.13.0",
        variables=(("TORCH_EXTENSIONS_DIR", _DIRECTORY),),
        default="{cache}/torch_extensions/*",
        holds="a build directory with a library an extension, by its name alone",
        level="python-cuda-arch",
        units=(Unit(pattern="*/", lock="{stem}/lock", lock_by="existence"),),
        cold_start="one compiles",
        mends_itself=False,
        moves=False,
        moves_because="build.ninja of load_inline holds absolute paths",
        read_at="use",
        source="run: a variable that is set loses the level pyXY_cuZZZ, and no name has the architecture",
    ),
    JitCache(
        name="torch-kernels",
        software="torch",
        versions="2.13.0",
        variables=(("PYTORCH_KERNEL_CACHE_PATH", _DIRECTORY),),
        default="{cache}/torch/kernels",
        holds="cubins of jiterated operators",
        units=(Unit(pattern="*"),),
        staged=("*_tmp_{number}",),
        cold_start="each compiles",
        mends_itself=None,
        moves=True,
        needs_directory=True,
        read_at="use",
        source="read: aten/src/ATen/native/cuda/jit_utils.cpp, get_cache_dir",
    ),
    JitCache(
        name="cuda",
        software="the NVIDIA driver",
        versions="by its manual",
        variables=(("CUDA_CACHE_PATH", _DIRECTORY),),
        default="{home}/.nv/ComputeCache",
        holds="what the driver compiles of PTX",
        units=(),
        bounded_by="CUDA_CACHE_MAXSIZE",
        cold_start="not known",
        mends_itself=None,
        moves=True,
        read_at="use",
        source="CUDA Programming Guide, environment variables; llm-d #418 sets it",
    ),
    JitCache(
        name="aiter",
        software="aiter",
        versions="0.1.7, main at 0243447",
        variables=(("AITER_JIT_DIR", _DIRECTORY),),
        kind="named-only",
        reason="hides the modules that aiter has installed: it imports modules from there alone",
        default="{home}/.aiter/jit",
        holds="a library a module; a software for AMD GPUs",
        level="arch",
        units=(
            Unit(
                pattern="*.so",
                companions=("build/{stem}/",),
                lock="build/lock_{stem}",
                lock_by="existence",
            ),
        ),
        cold_start="one compiles",
        mends_itself=None,
        moves=False,
        moves_because=_NINJA,
        not_quoted=_SHELL,
        read_at="import",
        module="aiter",
        source="read: aiter/jit/core.py (get_user_jit_dir, get_module_custom_op); orphaned locks hang: aiter #3635",
    ),
    JitCache(
        name="cupy",
        software="cupy",
        versions="14.2.0",
        variables=(("CUPY_CACHE_DIR", _DIRECTORY),),
        default="{home}/.cupy/kernel_cache",
        holds="a cubin a kernel, with its digest in front",
        units=(
            Unit(pattern="*.cubin", companions=("{stem}.cubin.cu",)),
            Unit(pattern="*.ltoir", companions=("{stem}.ltoir.cu",)),
        ),
        staged=("tmp*",),
        cold_start="each compiles",
        mends_itself=True,
        moves=True,
        read_at="import",
        module="cupy",
        source="run: the private compile function, LTO-IR; read: cupy/cuda/_compiler_cache.py",
    ),
    JitCache(
        name="warp",
        software="warp-lang",
        versions="1.19.0",
        variables=(("WARP_CACHE_PATH", _DIRECTORY),),
        default="{cache}/warp",
        holds="a module's library, by version",
        units=(Unit(pattern="*/wp_*/"), Unit(pattern="*/lto/*")),
        staged=("*/wp_*_p{number}_t{number}/", "*/lto_p{number}_t{number}/"),
        cold_start="each compiles",
        mends_itself=False,
        moves=True,
        read_at="use",
        source="run",
    ),
    JitCache(
        name="numba",
        software="numba, numba-cuda",
        versions="0.68.1, 0.30",
        variables=(("NUMBA_CACHE_DIR", _DIRECTORY),),
        default="(__pycache__ beside the source)",
        holds="functions with cache=True, by the source's directory, Python and processor",
        units=(Unit(pattern="*/*.nbi", companions=("{stem}.*.nbc",)),),
        staged=("*/*.nbi.tmp.*", "*/*.nbc.tmp.*"),
        cold_start="each compiles",
        mends_itself=False,
        moves=True,
        read_at="import",
        module="numba",
        source="run: numba; read: numba-cuda",
    ),
    JitCache(
        name="cuda-core",
        software="cuda-core",
        versions="1.2.2",
        variables=(),
        kind="by-hand",
        reason="only XDG_CACHE_HOME moves it, and every other program's cache; "
        "say FileStreamProgramCache(path=…) in the program",
        default="{cache}/cuda-python/program-cache",
        holds="cubins",
        units=(Unit(pattern="entries/*/*"),),
        staged=("tmp/*",),
        cold_start="each compiles",
        mends_itself=False,
        moves=True,
        read_at="use",
        source="run",
    ),
    JitCache(
        name="jax",
        software="jax",
        versions="0.10.2",
        variables=(
            ("JAX_COMPILATION_CACHE_DIR", _DIRECTORY),
            ("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none"),
        ),
        kind="named-only",
        reason="switches JAX's persistent cache on, which is off",
        default="(off)",
        holds="executables",
        units=(Unit(pattern="*-cache", companions=("{stem}-atime",), lock=".lockfile"),),
        bounded_by="JAX_COMPILATION_CACHE_MAX_SIZE",
        cold_start="each compiles",
        mends_itself=False,
        moves=True,
        read_at="import",
        module="jax",
        source="run: without the second variable the keys hold the directory's own path",
    ),
    JitCache(
        name="helion",
        software="helion",
        versions="1.5.1",
        variables=(("HELION_CACHE_DIR", _DIRECTORY),),
        default="{root}/helion",
        holds="the best configuration of each kernel, which took minutes to hours of tuning",
        units=(Unit(pattern="*.best_config"),),
        staged=("tmp.*",),
        dear="it took minutes to hours of tuning",
        cold_start="each compiles",
        mends_itself=True,
        moves=True,
        read_at="use",
        source="read and asked: autotuner/local_cache.py",
    ),
    JitCache(
        name="sglang",
        software="sglang",
        versions="0.5.23",
        variables=(
            ("SGLANG_CACHE_DIR", _DIRECTORY),
            ("SGLANG_JIT_CACHE_DIR", "{directory}/jit"),
            ("SGLANG_DG_CACHE_DIR", "{deepgemm}"),
        ),
        default="{home}/.cache/sglang",
        holds="its own kernels, and exported CuTe objects; of others what they were not told otherwise",
        units=(Unit(pattern="jit/*/*/build-*/"),),
        staged=("jit/*/*/build-*/.staging-*/",),
        cold_start="each compiles",
        mends_itself=True,
        moves=True,
        needs_local=True,
        not_in_tmp=True,
        not_quoted=_SHELL,  # DeepGEMM's kernels lie below
        expands_home=True,
        read_at="import",
        module="sglang",
        source="run: srt/environ.py; read: kernels/jit/utils/compile/cache.py, gpu_worker.py (replaces values in tmp)",
    ),
    JitCache(
        name="vllm",
        software="vllm",
        versions="0.33.0",
        variables=(("VLLM_CACHE_ROOT", _DIRECTORY),),
        default="{cache}/vllm",
        holds="compiled graphs of each model and rank, with an Inductor cache of their own",
        level="arch",
        units=(Unit(pattern="torch_compile_cache/*/"), Unit(pattern="torch_aot_compile/*/")),
        cold_start="each compiles",
        mends_itself=None,
        moves=True,
        needs_local=True,
        not_quoted=_SHELL,  # so may DeepGEMM's, which vLLM puts below
        expands_home=True,
        read_at="use",
        source="read: envs.py, compilation/compiler_interface.py (sets Inductor's variable whatever it was)",
    ),
    JitCache(
        name="unsloth",
        software="unsloth-zoo",
        versions="2026.10.9",
        variables=(("UNSLOTH_COMPILE_LOCATION", _DIRECTORY),),
        kind="named-only",
        reason="programs of different versions rewrite each other's files there: names are those of modules",
        default="(unsloth_compiled_cache in the current directory)",
        holds="generated Python, which is put on sys.path",
        units=(Unit(pattern="*.py", companions=("__pycache__/{stem}.*.pyc",)),),
        cold_start="not known",
        mends_itself=None,
        moves=True,
        read_at="import",
        module="unsloth_zoo",
        source="read: compiler.py",
    ),
    JitCache(
        name="fla",
        software="fla-core",
        versions="0.6.0",
        variables=(("FLA_CONFIG_DIR", _DIRECTORY),),
        kind="named-only",
        reason="hides the configurations that fla has installed; FLA_CACHE_MODE says whether any are read",
        default="(the package's configs)",
        holds="results of tuning, by the GPU's name",
        units=(),
        cold_start="not known",
        mends_itself=None,
        moves=True,
        read_at="use",
        source="read and asked: ops/utils/cache.py, get_fla_config_dir",
    ),
    JitCache(
        name="kernels",
        software="kernels",
        versions="0.17.2",
        variables=(("KERNELS_CACHE", _DIRECTORY),),
        kind="named-only",
        reason="holds downloads, which would be fetched again",
        default="(the Hugging Face hub's cache)",
        holds="downloaded builds of kernels; nothing is compiled",
        units=(Unit(pattern="*--*--*/"),),
        dear="a node without a network could not fetch it again",
        cold_start="not known",
        mends_itself=None,
        moves=True,
        read_at="import",
        module="kernels",
        source="read and asked: hf_hub.py, CACHE_DIR",
    ),
)

ALL = "all"
"""The word that chooses every cache of kind ``on``."""
NONE = "none"
"""The word that chooses no cache, where another is the default."""
SET_ANYWAY = {"triton": TRITON_DIRECTORY.name, "inductor": INDUCTOR_ROOT.name}
"""The two caches whose variables `gpucache run` and `env` set whatever is chosen, which may be named all the same."""


def by_name(name: str) -> JitCache:
    """The row of this name.

    Raises:
        KeyError: no row has it.
    """
    for cache in JIT_CACHES:
        if cache.name == name:
            return cache
    raise KeyError(name)


def named(text: str, said_by: str) -> tuple[str, ...]:
    """The words of ``--caches``, all of which choose something.

    Raises:
        ConfigurationError: there is no word, or a word is no cache's name; ``said_by`` is what the error names.
    """
    try:
        names = CACHES.parse(text)
    except ValueError as error:
        raise ConfigurationError(said_by, text, str(error)) from None
    chosen(names, said_by)
    return names


def chosen(names: Sequence[str], said_by: str) -> tuple[JitCache, ...]:
    """The rows that these names choose, each once, in the table's order.

    ``all`` is every row of kind ``on``, ``none`` no row.

    Args:
        names: words of ``--caches`` or `GPUCACHE_CACHES`.
        said_by: what the error names: the option or the variable.

    Raises:
        ConfigurationError: a name is no cache's; the error says the nearest right one.
    """
    known = {ALL, NONE, *SET_ANYWAY, *(cache.name for cache in JIT_CACHES)}
    for name in names:
        if name not in known:
            raise ConfigurationError(said_by, name, _expected(name, known))
    rows = []
    for cache in JIT_CACHES:
        is_meant_by_all = ALL in names and cache.kind == "on"
        if is_meant_by_all or cache.name in names:
            rows.append(cache)
    return tuple(rows)


def _expected(name: str, known: set[str]) -> str:
    from gpucache.near import nearest  # only a mistake needs it

    near = nearest(name.lower(), known - {NONE})
    listed = "a name that `gpucache caches` lists"
    if near is not None:
        return f"{listed}; the nearest is {near}"
    return listed
