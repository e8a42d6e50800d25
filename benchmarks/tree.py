"""Make a cache of real shape, fast and without Triton, read one kernel of it, and delete it by bare system calls.

The layout is that of the store's own functions. Names, sizes and metadata are those of a vector addition compiled by
Triton 3.9; what the other files say is repeated up to that size, so that nothing here can be run or disassembled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable

from gpucache import DeviceCacheRegistry, Snapshot, Status
from gpucache.disk.files import make_directory, write_new
from gpucache.kernels.group import write_group
from gpucache.layout import paths
from gpucache.machine.device import Device
from gpucache.store.manifest import (
    MANIFEST,
    Facts,
    Manifest,
    Published,
    entry_path,
    write_manifest,
)

DAY_S = 86400.0
KERNELS = (
    *(
        "add_kernel",
        "matmul_kernel",
        "_attn_fwd",
        "_attn_bwd",
        "_attn_bwd_preprocess",
        "_layer_norm_fwd_fused",
    ),
    *(
        "_layer_norm_bwd_dx_fused",
        "_layer_norm_bwd_dwdb",
        "softmax_kernel",
        "_seeded_dropout",
        "grouped_matmul_kernel",
    ),
    *(
        "fused_moe_kernel",
        "moe_align_block_size_kernel",
        "_fwd_kernel_stage1",
        "_fwd_kernel_stage2",
        "_topk_kernel",
    ),
    *(
        "kernel_unified_attention_2d",
        "kernel_unified_attention_3d",
        "reduce_segments",
        "rms_norm_kernel",
    ),
    *(
        "apply_rotary_emb_kernel",
        "cross_entropy_fwd_kernel",
        "cross_entropy_bwd_kernel",
        "swiglu_fwd_kernel",
    ),
    *(
        "chunk_scan_fwd_kernel",
        "chunk_state_fwd_kernel",
        "_bmm_chunk_fwd_kernel",
        "selective_scan_update_kernel",
    ),
    *(
        "triton_poi_fused_cat_0",
        "triton_poi_fused_cat_1",
        "triton_poi_fused_add_mul_2",
        "triton_poi_fused_silu_mul_3",
    ),
    *(
        "triton_poi_fused__to_copy_embedding_0",
        "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_1",
    ),
    *(
        "triton_red_fused_native_layer_norm_4",
        "triton_per_fused_sum_5",
        "triton_per_fused__softmax_6",
    ),
    *("triton_tem_fused_mm_7", "triton_tem_fused_addmm_relu_8", "triton_for_fused_foreach_9"),
)
SIZES = {"source": 3558, "ttir": 2184, "ttgir": 2637, "llir": 8804, "ptx": 7675}
CUBIN_SIZES = {80: 8168, 90: 9304}
_OPTIONS = {
    "num_warps": 4,
    "num_ctas": 1,
    "num_stages": 3,
    "warp_size": 32,
    "maxnreg": None,
    "ptx_version": None,
    "ptx_options": None,
    "ir_override": None,
    "enable_fp_fusion": True,
    "sched4reg": False,
    "enable_reflect_ftz": True,
    "launch_cooperative_grid": False,
    "launch_pdl": False,
    "clc": False,
    "supported_fp8_dtypes": ["fp8e4b15", "fp8e4nv", "fp8e5"],
    "deprecated_fp8_dot_operand_dtypes": ["fp8e4b15"],
    "default_dot_input_precision": "tf32",
    "allowed_dot_input_precisions": ["tf32", "tf32x3", "ieee", "bf16x3", "bf16x6"],
    "max_num_imprecise_acc_default": 1073741824,
    "extern_libs": [
        [
            "libdevice",
            "/venv/lib/python3.11/site-packages/triton/backends/nvidia/lib/libdevice.10.bc",
        ]
    ],
    "debug": False,
    "backend_name": "cuda",
    "sanitize_overflow": True,
}
_MADE = {
    "instrumentation_mode": "",
    "fpsan_homomorphic_casts": False,
    "min_shared_mem": None,
    "triton_version": "3.9.0",
    "tensordesc_meta": [],
    "shared": 0,
    "tmem_size": 0,
    "global_scratch_size": 0,
    "global_scratch_align": 1,
    "profile_scratch_size": 0,
    "profile_scratch_align": 1,
}


def make(root: str, entries: int, views: int, seed: int = 0) -> list[str]:
    """Provision ``views`` devices, and put as many views of each of ``entries`` kernels there; the keys, oldest first.

    The last uses are spread over the 60 days before now, and older than an hour. The same seed makes the same keys and
    files, at such times before now.
    """
    draw = random.Random(seed)
    devices = tuple(
        Device(uuid=f"GPU-{n:08x}", index=n, name="H100", compute_capability=(9, 0))
        for n in range(views)
    )
    os.makedirs(os.path.dirname(root), exist_ok=True)
    DeviceCacheRegistry(
        root, Snapshot(status=Status.OK, source="nvml", devices=devices), {}
    ).provision()
    contents = {
        (kernel, arch): _contents(kernel, arch) for kernel in KERNELS for arch in CUBIN_SIZES
    }
    now, used = time.time(), {}
    for _ in range(entries):
        digest, kernel, arch = (
            draw.randbytes(32),
            draw.choice(KERNELS),
            draw.choice(tuple(CUBIN_SIZES)),
        )
        key = base64.b32encode(digest).decode().rstrip("=")
        used[key] = now - draw.uniform(2 * 3600.0, 60 * DAY_S)
        options = {
            **_OPTIONS,
            "num_warps": draw.choice((1, 2, 4, 8)),
            "num_stages": draw.randint(1, 5),
        }
        files = {**contents[kernel, arch], **_metadata(kernel, arch, digest.hex(), options)}
        facts = Facts(
            kernel, f"{kernel}.json", f"cuda:{arch}", "3.9.0", round(draw.uniform(0.04, 4.0), 3)
        )
        _entry(root, key, files, facts, used[key], used[key] - draw.uniform(0.0, DAY_S))
        for n in range(views):
            _view(
                root,
                key,
                paths.device_directory(root, str(n)),
                [*files, MANIFEST],
                facts,
                used[key],
            )
    return sorted(used, key=used.__getitem__)


def contents(root: str, key: str) -> dict[str, bytes]:
    """What Triton would put for a kernel that `make` made: its seven files."""
    with os.scandir(f"{root}/triton/0/{key}") as found:
        names = [item.name for item in found if not item.name.startswith("__")]
    return {name: _read(f"{root}/triton/0/{key}/{name}") for name in names}


def new_key(draw: random.Random) -> str:
    """A key such as Triton's: 32 bytes in base 32."""
    return base64.b32encode(draw.randbytes(32)).decode().rstrip("=")


def bare_delete(root: str, keys: Iterable[str]) -> None:
    """Remove the entries of these keys and their views, with nothing in between."""
    with os.scandir(f"{root}/triton") as found:
        devices = [item.path for item in found]
    for key in keys:
        for directory in (entry_path(root, key), *(f"{device}/{key}" for device in devices)):
            with os.scandir(directory) as found:
                for item in found:
                    os.unlink(item.path)
            os.rmdir(directory)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _entry(
    root: str,
    key: str,
    files: dict[str, tuple[bytes, str]],
    facts: Facts,
    used: float,
    compiled: float,
) -> None:
    directory = entry_path(root, key)
    make_directory(directory)
    compiled_ns = int(compiled * 1e9)
    for name, (data, _) in files.items():
        write_new(f"{directory}/{name}", data)
        os.utime(f"{directory}/{name}", ns=(compiled_ns, compiled_ns))
    known = {}
    for name, (data, sha256) in files.items():
        known[name] = Published(len(data), compiled_ns, sha256)
    write_manifest(directory, Manifest(facts, known, paths.host_name()))
    os.utime(f"{directory}/{MANIFEST}", (used, used))
    os.utime(directory, (compiled, compiled))


def _view(root: str, key: str, device: str, names: list[str], facts: Facts, used: float) -> None:
    """As `link_view` does it, without a temporary name: nobody reads this tree yet."""
    entry, directory = entry_path(root, key), f"{device}/{key}"
    os.mkdir(directory, 0o700)
    for name in names:
        os.link(f"{entry}/{name}", f"{directory}/{name}")
    write_group(directory, directory, facts.group, [name for name in names if name != MANIFEST])
    os.utime(directory, (used, used))


def _contents(kernel: str, arch: int) -> dict[str, tuple[bytes, str]]:
    """The files that do not name their key, and their digests."""
    texts = {
        f"{kernel}.{kind}": _repeated(f"// {kernel} sm_{arch} {kind}\n", size)
        for kind, size in SIZES.items()
    }
    header = b"\x7fELF\x02\x01\x01".ljust(64, b"\0")  # an ELF object with no tables, which is whole
    texts[f"{kernel}.cubin"] = header + _repeated(
        f"{kernel} sm_{arch}\0", CUBIN_SIZES[arch] - len(header)
    )
    return {name: (data, hashlib.sha256(data).hexdigest()) for name, data in texts.items()}


def _repeated(text: str, size: int) -> bytes:
    return (text * (size // len(text) + 1)).encode()[:size]


def _metadata(
    kernel: str, arch: int, digest: str, options: dict[str, object]
) -> dict[str, tuple[bytes, str]]:
    target = {"backend": "cuda", "arch": arch, "warp_size": 32}
    known = {
        "hash": digest,
        "target": target,
        **options,
        "arch": f"sm{arch}",
        **_MADE,
        "name": kernel,
    }
    data = json.dumps(known).encode()
    return {f"{kernel}.json": (data, hashlib.sha256(data).hexdigest())}
