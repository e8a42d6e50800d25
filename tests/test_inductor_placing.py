"""Files of TorchInductor's get their names in a root: whole, never over another, and beside torch's locks."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
from pathlib import Path

import pytest
from support.inductor import code, digest
from support.users import ADA

from gpucache.disk.within import Straight
from gpucache.layout.inductor import carried_unit, is_cache
from gpucache.store import inductor_placing
from gpucache.store.inductor_placing import are_there, place
from gpucache.store.removal import InUse

NAME = code("one")
PLACE = NAME[1:3]
LIBRARY = {f"{PLACE}/{NAME}.main.cpp": b"source", f"{PLACE}/{NAME}.main.so": b"library"}
SOURCE = {f"{PLACE}/{NAME}.py": b"text"}
GRAPH = {f"fxgraph/ab/f{digest('g')}/{digest('h')}": b"graph"}
AUTOGRAD = {f"aotautograd/a{digest('g')}/{digest('h')}": b"graph"}


def unit_of(files: dict[str, bytes]) -> str:
    unit = carried_unit(next(iter(files)))
    assert unit is not None
    return unit


class Staged:
    """A root and, beside what is in it, staged files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "gpucache/v1/tmp/mine"
        self.tmp.mkdir(parents=True)
        self.numbers = itertools.count()

    def stage(self, files: dict[str, bytes]) -> dict[str, str]:
        staged = {}
        for name, content in files.items():
            path = self.tmp / f"{next(self.numbers)}"
            path.write_bytes(content)
            staged[name] = str(path)
        return staged

    def place(self, files: dict[str, bytes]) -> str:
        with Straight() as disk:
            return place(str(self.root), unit_of(files), self.stage(files), disk)

    @property
    def files(self) -> dict[str, bytes]:
        """All files in the root but what is gpucache's and what is a lock."""
        found = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if path.is_file() and not name.startswith(("gpucache/", "locks/")):
                found[name] = path.read_bytes()
        return found


@pytest.fixture
def here(root: Path) -> Staged:
    return Staged(root)


@pytest.fixture(params=["links", "no links"])
def any_mount(request, monkeypatch):
    """Also a mount on which a file has one name."""
    if request.param == "links":
        return

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Straight, "link", refuse)


@pytest.mark.usefixtures("any_mount")
class TestPlace:
    @pytest.mark.parametrize("files", [LIBRARY, SOURCE, GRAPH, AUTOGRAD])
    def test_files_get_their_names_once(self, here, files):
        assert here.place(files) == "made"
        assert here.files == files
        assert here.place(files) == "there"
        assert all(is_cache(name) for name in here.files)

    def test_others_may_read_as_what_torch_makes(self, here):
        before = os.umask(0)
        try:
            here.place(GRAPH)
        finally:
            os.umask(before)
        (name,) = GRAPH
        modes = [stat.S_IMODE((here.root / name).parents[up].stat().st_mode) for up in range(3)]
        assert modes == [0o755, 0o755, 0o755]

    def test_in_a_root_that_a_group_shares_its_members_may_write_whatever_the_umask(self, here):
        own = here.root / "gpucache" / "v1"
        own.chmod(0o2770)
        here.root.chmod(0o2770)
        before = os.umask(0o077)
        try:
            staged = here.stage(LIBRARY)
            for path in staged.values():
                os.chmod(path, 0o660)
            with Straight() as disk:
                place(str(here.root), unit_of(LIBRARY), staged, disk)
        finally:
            os.umask(before)
        for name in (PLACE, "locks"):
            assert stat.S_IMODE((here.root / name).stat().st_mode) == 0o2770
            for path in (here.root / name).iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o660, path

    def test_what_is_there_stays(self, here):
        """Torch's own may differ: a library has the time of its making in it."""
        own = here.root / f"{PLACE}/{NAME}.main.so"
        own.parent.mkdir()
        own.write_bytes(b"torch's own")
        assert here.place(LIBRARY) == "made"
        assert here.files == {**LIBRARY, f"{PLACE}/{NAME}.main.so": b"torch's own"}

    def test_what_torch_makes_meanwhile_stays(self, here, monkeypatch):
        """Torch writes a graph without a lock, after the last look for it."""
        (name,) = GRAPH
        path = here.root / name

        def write(*args: object) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"torch's own")
            make_way(*args)

        make_way = inductor_placing._make_way
        monkeypatch.setattr(inductor_placing, "_make_way", write)
        assert here.place(GRAPH) == "there"
        assert here.files == {name: b"torch's own"}

    @pytest.mark.root
    def test_what_root_places_is_the_owners_of_the_root(self, here):
        for path in (here.root, *here.root.rglob("*")):
            os.chown(path, ADA, ADA)
        for files in (LIBRARY, GRAPH):
            here.place(files)
        made = [*here.root.glob("??"), *here.root.glob("??/*"), *here.root.glob("fxgraph/**/*")]
        made += [*here.root.glob("locks/*"), here.root / "locks"]
        assert len(made) == 1 + 2 + 3 + 2
        assert {path.lstat().st_uid for path in made} == {ADA}


class TestALock:
    def lock(self, here: Staged) -> Path:
        return here.root / f"locks/{NAME}.lock"

    def test_that_torch_holds_is_not_waited_for(self, here):
        here.place(SOURCE)
        self.lock(here).parent.mkdir()
        with self.lock(here).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(InUse, match="locked"):
                here.place(LIBRARY)
            assert here.files == SOURCE
            here.place(GRAPH)
        assert here.place(LIBRARY) == "made"

    def test_of_a_library_is_held_while_its_files_get_their_names(self, here, monkeypatch):
        def look(self: Straight, source: str, target: str) -> None:
            with pytest.raises(BlockingIOError), lock.open() as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(target)

        lock, seen = self.lock(here), []
        monkeypatch.setattr(Straight, "link", look)
        here.place(LIBRARY)
        assert [Path(path).suffix for path in seen] == [".cpp", ".so"]

    def test_is_none_of_what_torch_writes_without(self, here):
        for files in (SOURCE, GRAPH, AUTOGRAD):
            here.place(files)
        assert not (here.root / "locks").exists()

    def test_where_there_is_none_nothing_is_placed(self, here, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(InUse, match="nothing can be locked"):
            here.place(LIBRARY)
        assert here.files == {}
        here.place(GRAPH)

    def test_that_was_removed_as_it_was_taken_is_none(self, here, monkeypatch):
        """`prune` removes a library with its lock."""

        def remove(fd: int, how: int) -> None:
            flock(fd, how)
            self.lock(here).unlink(missing_ok=True)

        flock = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", remove)
        with pytest.raises(InUse, match="removed"):
            here.place(LIBRARY)
        assert here.files == {}


@pytest.mark.parametrize("link", ["fxgraph", "fxgraph/ab", "file"])
def test_no_link_is_followed(here, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (name,) = GRAPH
    path = here.root / (name if link == "file" else link)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / "new" if link == "file" else outside)
    if link == "file":
        assert here.place(GRAPH) == "there"
    else:
        with pytest.raises(OSError) as caught:
            here.place(GRAPH)
        assert caught.value.errno == errno.ELOOP
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", [f"{PLACE}/{NAME}.h", "../x", "/etc/x", f"locks/{NAME}.lock"])
def test_nothing_else_is_placed(here, name):
    with pytest.raises(ValueError, match="no file of"), Straight() as disk:
        place(str(here.root), NAME, {name: "/etc/passwd"}, disk)


def test_names_are_there_once_all_are(here):
    with Straight() as disk:
        assert not are_there(str(here.root), tuple(LIBRARY), disk)
        here.place(dict(list(LIBRARY.items())[:1]))
        assert not are_there(str(here.root), tuple(LIBRARY), disk)
        here.place(LIBRARY)
        assert are_there(str(here.root), tuple(LIBRARY), disk)
