"""What class a manager of one key is: ours, or Triton's own behind our name."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.users import ADA, acting_as, directory
from support.writers import put_kernel

from gpucache.store.quarantine import quarantine
from gpucache.triton import CacheManager, DeviceCacheManager
from gpucache.triton import manager as plugin
from gpucache.triton.manager import StockCacheManager

KEY = "A" * 52


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plugin, "_locations", {})
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_DIR", str(tmp_path / "dump"))
    monkeypatch.setenv("GPUCACHE_DIR", str(tmp_path / "root"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "root" / "triton" / "0"))
    return tmp_path / "root"


@pytest.fixture
def triton_loaded() -> None:
    """As in a process that compiles: Triton's own manager is there to act."""
    pytest.importorskip("triton.runtime.cache")


class Counting(DeviceCacheManager):
    """A user's class on top of ours, with a constructor of its own."""

    def __init__(self, key: str, **options: bool) -> None:
        super().__init__(key, **options)
        self.asked = 0

    def get_file(self, filename: str) -> str | None:
        self.asked += 1
        return super().get_file(filename)


def test_it_has_a_base_of_the_name_that_triton_looks_for():
    assert "CacheManager" in {base.__name__ for base in DeviceCacheManager.__mro__}
    manager = DeviceCacheManager(KEY)
    assert type(manager) is DeviceCacheManager
    assert isinstance(manager, CacheManager)


@pytest.mark.parametrize("options", [{"override": True}, {"dump": True}], ids=str)
@pytest.mark.usefixtures("triton_loaded")
def test_what_triton_overrides_or_dumps_is_tritons_own(options):
    manager = DeviceCacheManager(KEY, **options)
    assert type(manager) is StockCacheManager
    assert isinstance(manager, DeviceCacheManager)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GPUCACHE_SHARE", "0"), ("GPUCACHE_DISABLE", "1"), ("USE_IR_LOC", "ttir")],
)
@pytest.mark.usefixtures("triton_loaded")
def test_where_nothing_may_be_shared_tritons_own_does_everything(monkeypatch, root, name, value):
    monkeypatch.setenv(name, value)
    manager = DeviceCacheManager(KEY)
    assert manager.get_file("add.json") is None
    path = manager.put("{}", "add.json", binary=False)
    manager.put_group("add.json", {"add.json": path})
    assert Path(path) == root / "triton" / "0" / KEY / "add.json"
    assert DeviceCacheManager(KEY).get_group("add.json") == {"add.json": path}
    assert DeviceCacheManager(KEY).has_file("add.json")
    assert not list(root.glob("gpucache/v1/store/*"))


def test_a_class_derived_from_it_is_made_by_its_own_constructor():
    manager = Counting(KEY)
    assert type(manager) is Counting
    assert manager.get_file("lib.so") is None
    assert manager.asked == 1


@pytest.mark.usefixtures("triton_loaded")
def test_in_the_place_of_a_derived_one_tritons_own_acts_as_well():
    assert type(Counting(KEY, dump=True)) is StockCacheManager


@pytest.mark.root
@pytest.mark.usefixtures("triton_loaded")
def test_what_root_is_the_first_to_make_in_a_users_root_is_the_users(everyones, monkeypatch):
    root = directory(everyones / "root", 0o755, ADA)
    with acting_as(ADA):
        (root / "triton").mkdir()
    monkeypatch.setattr(plugin, "_locations", {})
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    monkeypatch.setenv("GPUCACHE_TRUST_UIDS", str(ADA))
    put_kernel("A" * 52)
    monkeypatch.setattr(plugin, "_locations", {})
    with acting_as(ADA):
        assert plugin.DeviceCacheManager("A" * 52).get_group("add.json")
        put_kernel("A" * 51 + "B")  # in the same part of the store
        assert quarantine(str(root), str(root / "triton/0" / ("A" * 52)))
    for path in root.rglob("*"):
        is_staged = "tmp" in path.relative_to(root).parts  # by a process of root's, until its end
        if path.is_dir() and not is_staged:
            assert path.stat().st_uid == ADA, path
    assert (root / "gpucache/v1/stats/size").stat().st_uid == ADA
