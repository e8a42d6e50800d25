from __future__ import annotations

import copy
import errno
import pickle

import pytest

from gpucache import errors
from gpucache.errors import (
    CacheMissError,
    ConfigurationError,
    DeviceIndexError,
    DeviceNameError,
    DiscoveryError,
    GpuCacheError,
    LockTimeoutError,
    NoArtefactError,
    NoDeviceError,
    NoEntryError,
    NoRootError,
    NotCachedError,
    NotInstalledError,
    ProvisionError,
    RecipesError,
    RecordError,
    SharingError,
    TooLateError,
    UnsafeDirectoryError,
)

# (error, the built-in it also is, what the message must name, the attributes that carry the data)
EXAMPLES = [
    pytest.param(
        CacheMissError("matmul", "KEY", ("/r/triton/0/KEY", "/r/store/KEY")),
        LookupError,
        [
            "kernel matmul with key KEY is not in /r/triton/0/KEY nor in /r/store/KEY",
            "GPUCACHE_REQUIRE_HIT",
        ],
        {"kernel": "matmul", "key": "KEY", "looked": ("/r/triton/0/KEY", "/r/store/KEY")},
        id="miss",
    ),
    pytest.param(
        ConfigurationError("GPUCACHE_DISABLE", "yes", "0 or 1"),
        ValueError,
        ["GPUCACHE_DISABLE='yes' is not 0 or 1", "correct or unset GPUCACHE_DISABLE"],
        {"name": "GPUCACHE_DISABLE", "value": "yes", "expected": "0 or 1"},
        id="configuration",
    ),
    pytest.param(
        DiscoveryError("timeout", "NVML did not answer", "run nvidia-smi", 10),
        RuntimeError,
        ["(timeout)", "NVML did not answer", "; run nvidia-smi"],
        {
            "status": "timeout",
            "detail": "NVML did not answer",
            "advice": "run nvidia-smi",
            "code": 10,
        },
        id="discovery",
    ),
    pytest.param(
        NoDeviceError("no-driver", "the driver is not loaded", "load the NVIDIA kernel module"),
        LookupError,
        ["(no-driver)", "the driver is not loaded", "; load the NVIDIA kernel module"],
        {
            "status": "no-driver",
            "detail": "the driver is not loaded",
            "advice": "load the NVIDIA kernel module",
        },
        id="no device",
    ),
    pytest.param(
        DeviceIndexError(8, 8, "'9' names none of the 8 GPUs"),
        IndexError,
        [
            "ordinal 8",
            "ordinals 0 to 7",
            "'9' names none of the 8 GPUs",
            "; CUDA_VISIBLE_DEVICES, GPUCACHE_DEVICE and",
        ],
        {"ordinal": 8, "count": 8, "why": "'9' names none of the 8 GPUs"},
        id="device index",
    ),
    pytest.param(
        RecordError("/cache/devices/a.json", "torn", "the record is torn", "delete it"),
        LookupError,
        ["/cache/devices/a.json: the record is torn", "; delete it"],
        {
            "path": "/cache/devices/a.json",
            "reason": "torn",
            "fact": "the record is torn",
            "hint": "delete it",
        },
        id="record",
    ),
    pytest.param(
        UnsafeDirectoryError("/tmp/theirs", "belongs to uid 1000", "use your own"),
        PermissionError,
        ["/tmp/theirs: belongs to uid 1000", "; use your own"],
        {"path": "/tmp/theirs", "fact": "belongs to uid 1000", "hint": "use your own"},
        id="unsafe directory",
    ),
    pytest.param(
        SharingError("/cache", "not-the-owner", "belongs to uid 1000", "ask its owner"),
        PermissionError,
        ["/cache: belongs to uid 1000", "; ask its owner"],
        {
            "root": "/cache",
            "reason": "not-the-owner",
            "fact": "belongs to uid 1000",
            "hint": "ask its owner",
        },
        id="sharing",
    ),
    pytest.param(
        ProvisionError("/full/triton/0", errno.ENOSPC),
        OSError,
        ["/full/triton/0", "No space left on device", "; make room"],
        {"path": "/full/triton/0", "errno": errno.ENOSPC},
        id="provision",
    ),
    pytest.param(
        NoRootError("/typo", "missing", "--root"),
        LookupError,
        ["there is no /typo", "; correct --root, or make it: `gpucache provision --root /typo`"],
        {"root": "/typo", "reason": "missing", "named": "--root", "above": None},
        id="no root",
    ),
    pytest.param(
        DeviceNameError("GPU-8", ("GPU-8a", "GPU-8b"), ("GPU-8a", "GPU-8b", "GPU-9")),
        LookupError,
        ["2 devices have UUIDs that begin with 'GPU-8'", "; say more of one of GPU-8a, GPU-8b"],
        {"name": "GPU-8", "found": ("GPU-8a", "GPU-8b"), "there": ("GPU-8a", "GPU-8b", "GPU-9")},
        id="device name",
    ),
    pytest.param(
        RecipesError("/r.jsonl", "No such file or directory"),
        ValueError,
        ["/r.jsonl: No such file or directory", "; name a file that `gpucache recipe`"],
        {"path": "/r.jsonl", "reason": "No such file or directory"},
        id="recipes",
    ),
    pytest.param(
        NotInstalledError("zstandard"),
        ImportError,
        ["library zstandard is not installed", "pip install opendal redis zstandard cryptography"],
        {"module": "zstandard"},
        id="not installed",
    ),
    pytest.param(
        NotCachedError("/r", "--arch", "hopper", ("sm_80", "sm_90")),
        LookupError,
        ["nothing cached in /r has --arch 'hopper'", "; there is sm_80, sm_90"],
        {"root": "/r", "option": "--arch", "value": "hopper", "there": ("sm_80", "sm_90")},
        id="not cached",
    ),
    pytest.param(
        NoEntryError("/r", "AB", ("ABA", "ABB", "ABC", "ABD")),
        LookupError,
        [
            "4 entries in /r have keys that begin with 'AB', such as ABA, ABB, ABC",
            "; say more of the key",
        ],
        {"root": "/r", "key": "AB", "found": ("ABA", "ABB", "ABC", "ABD")},
        id="several entries",
    ),
    pytest.param(
        TooLateError(3, "kernel", "/home/me/.triton/cache"),
        RuntimeError,
        [
            "gpucache.use(3) comes too late",
            "Triton has a kernel in this process, cached in /home/me/.triton/cache",
            "; call it as the first thing that a worker does",
            "`DeviceCacheRegistry.environ`",
        ],
        {"ordinal": 3, "what": "kernel", "where": "/home/me/.triton/cache"},
        id="too late",
    ),
    pytest.param(
        NoArtefactError("add", "AB", "ptx", ("cubin", "json", "sass")),
        LookupError,
        ["add AB has no ptx", "; there is cubin, json, sass", "prune --keep-binaries"],
        {"kernel": "add", "key": "AB", "form": "ptx", "there": ("cubin", "json", "sass")},
        id="no artefact",
    ),
    pytest.param(
        NoEntryError("/r", "matmul", (), True),
        LookupError,
        ["'matmul'", "; that is a kernel's name: `gpucache ls --kernel matmul`"],
        {"key": "matmul", "is_kernel": True},
        id="a kernel's name",
    ),
    pytest.param(
        NoEntryError("/r", "AB", ()),
        LookupError,
        [
            "no entry in /r has a key that begins with 'AB'",
            "; `gpucache ls` lists keys, and `gpucache ls --kernel '*AB*'`",
            "--root, GPUCACHE_DIR",
        ],
        {"root": "/r", "key": "AB", "found": ()},
        id="no entry",
    ),
    pytest.param(
        LockTimeoutError("/cache/locks/provision.lock", 1.5, "process 7 on node3 since noon"),
        TimeoutError,
        [
            "/cache/locks/provision.lock",
            "within 1.5 s",
            "process 7 on node3 since noon",
            "; wait for that process",
        ],
        {
            "path": "/cache/locks/provision.lock",
            "timeout_s": 1.5,
            "holder": "process 7 on node3 since noon",
        },
        id="lock timeout",
    ),
]


def test_every_error_is_tried_here_and_drawn_in_the_docstring():
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    tried = {type(example.values[0]).__name__ for example in EXAMPLES}
    assert defined == tried | {"GpuCacheError"}
    assert all(name in (errors.__doc__ or "") for name in defined)


@pytest.mark.parametrize(("error", "builtin", "named", "attributes"), EXAMPLES)
class TestEveryError:
    def test_has_the_one_base_and_is_the_built_in_it_promises(
        self, error, builtin, named, attributes
    ):
        assert isinstance(error, GpuCacheError)
        assert isinstance(error, builtin)

    def test_names_the_path_or_value_and_the_way_out(self, error, builtin, named, attributes):
        for part in named:
            assert part in str(error)
        assert str(error) == f"{error.problem}; {error.hint}"
        assert not str(error).endswith(".")

    def test_carries_its_data(self, error, builtin, named, attributes):
        assert {name: getattr(error, name) for name in attributes} == attributes

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickling(self, error, builtin, named, attributes, protocol):
        """It comes back whole from a worker process."""
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)
        assert {name: getattr(back, name) for name in attributes} == attributes

    def test_can_be_copied(self, error, builtin, named, attributes):
        assert str(copy.copy(error)) == str(error)


def test_the_default_of_a_way_out_survives_pickling_too():
    for error in (
        RecordError("/r", "torn", "is torn"),
        ProvisionError("/r", errno.EROFS, "remount it"),
        DeviceIndexError(-1, 0),
    ):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "has no device"), (1, "has only ordinal 0"), (2, "has ordinals 0 to 1")]
)
def test_an_ordinal_out_of_range_is_told_what_there_is(count, said):
    assert said in str(DeviceIndexError(7, count))
