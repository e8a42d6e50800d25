"""How long does it take to learn a device's directory?

Measures one warm lookup through `registry.path`, and through the drop-in `triton_cache_dir` with the environment
honoured live, beside a bare method that returns a list item, a bare dict lookup, and the real torch function where
torch is installed. Ratios to the bare method and to torch are printed last; they are a baseline, not a gate.

Does not measure: imports, construction, provisioning, or a cold CPU cache.

Repeat: python -m pytest benchmarks/bench_path.py -q      (smoke: add --benchmark-disable)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from report import environment

from gpucache import DeviceCacheRegistry, triton_cache_dir

_medians: dict[str, float] = {}


class Bare:
    """The least that a method returning a path can do."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def path(self, ordinal: int) -> str:
        return self.paths[ordinal]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("bench") / "root")


@pytest.fixture(scope="module", autouse=True)
def ratios(root: str) -> Iterator[None]:
    """Eight fake devices' environment; afterwards, the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", root)
        patch.delenv("TRITON_CACHE_DIR", raising=False)
        yield
    if not _medians:
        return
    print(f"\n\n{environment()}")
    for name, median in _medians.items():
        beside = f"{median / _medians['bare method']:8.2f}x bare method"
        torch = _medians.get(name.replace("ours", "torch")) if "ours" in name else None
        print(
            f"{name:<40}{median * 1e9:10.1f} ns{beside}"
            + (f"{torch / median:8.1f}x faster" if torch else "")
        )


@pytest.fixture
def measure(benchmark: object) -> Callable[..., None]:
    def run(name: str, function: Callable[[int], str], expected: str) -> None:
        assert benchmark(function, 3) == expected
        if benchmark.stats is not None:
            _medians[name] = benchmark.stats.stats.median

    return run


def test_bare_method(measure, root):
    measure("bare method", Bare([f"{root}/triton/{n}" for n in range(8)]).path, f"{root}/triton/3")


def test_bare_dict(measure, root):
    measure(
        "bare dict lookup",
        {n: f"{root}/triton/{n}" for n in range(8)}.__getitem__,
        f"{root}/triton/3",
    )


def test_registry_path(measure, root):
    registry = DeviceCacheRegistry(root, environ={"GPUCACHE_FAKE_DEVICES": "8"})
    measure("registry.path", registry.path, f"{root}/triton/3")


def test_drop_in(measure, root):
    measure("triton_cache_dir (ours)", triton_cache_dir, f"{root}/triton/3")


def test_drop_in_overridden(measure, root, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/x")
    measure("triton_cache_dir, overridden (ours)", triton_cache_dir, "/x")


def test_torch(measure, root):
    functions = pytest.importorskip("torch._inductor.runtime.cache_dir_utils", reason="needs torch")
    measure("triton_cache_dir (torch)", functions.triton_cache_dir, f"{root}/triton/3")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == root


def test_torch_overridden(measure, monkeypatch):
    functions = pytest.importorskip("torch._inductor.runtime.cache_dir_utils", reason="needs torch")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/x")
    measure("triton_cache_dir, overridden (torch)", functions.triton_cache_dir, "/x")
