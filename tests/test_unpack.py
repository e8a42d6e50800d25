"""An entry of a pack is whole in the store or not there, whatever ends the run; and a second run goes on."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.inductor import digest
from support.packs import CONTENT, Source, archived, key
from support.processes import BARE
from support.trees import aged
from support.users import ADA

from gpucache.archive.errors import BadPack
from gpucache.archive.fits import Here, here
from gpucache.archive.read import PackReader
from gpucache.archive.signature import anyone
from gpucache.archive.statement import ArchivedEntry
from gpucache.archive.unpack import Unpacked, unpack
from gpucache.disk.staging import sweep_dead
from gpucache.disk.vetting import Trust
from gpucache.errors import ProvisionError, UnsafeDirectoryError
from gpucache.kernels.stages import kept
from gpucache.report.cache_report import scan
from gpucache.store.key_lock import KeyLock
from gpucache.store.lookup import sound
from gpucache.store.manifest import MANIFEST, RECIPE, Facts, entry_path, read_manifest
from gpucache.store.preparing import prepare
from gpucache.store.size import total_bytes
from gpucache.upkeep.verify import verify


@pytest.fixture
def root(tmp_path: Path) -> str:
    where = str(tmp_path / "root")
    prepare(where, Trust())
    return where


def unpacked(root: str, source: Source | bytes, **options) -> Unpacked:
    data = source if isinstance(source, bytes) else source.packed()
    with PackReader(io.BytesIO(data), anyone, source_name="a pack") as reader:
        return unpack(reader, root, **options)


def entry(root: str, number: int) -> Path:
    return Path(entry_path(root, key(number)))


def whole(root: str, number: int, content: dict[str, bytes] = CONTENT) -> bool:
    """Whether the store has the entry with these files, each with its content, and nothing more."""
    path = entry(root, number)
    manifest = sound(str(path), True, 0.0)
    if manifest is None:
        return False
    files = {name: (path / name).read_bytes() for name in manifest.listed}
    assert manifest.key == key(number)
    return files == content


def staged(root: str) -> list[Path]:
    """What is left in ``tmp`` of what was not published."""
    return list(Path(root, "gpucache/v1/tmp").glob("*/*"))


class TestOneEntry:
    def test_it_is_in_the_store_as_if_it_had_been_compiled_here(self, root):
        done = unpacked(root, Source().add(recipe=b'{"how": 1}'))
        assert [one.key for one in done.made] == [key(0)]
        assert whole(root, 0)
        manifest, _ = read_manifest(str(entry(root, 0)))
        assert manifest.facts == Facts("add", "add.json", "cuda:90", "3.9.0", 0.25)
        assert manifest.recipe == hashlib.sha256(b'{"how": 1}').hexdigest()
        assert (entry(root, 0) / RECIPE).read_bytes() == b'{"how": 1}'
        assert not verify(root).findings
        assert staged(root) == []

    def test_a_kernel_of_any_name_is_taken(self, root):
        """Triton's files for a kernel that is called ``__entry__``, and one of 200 letters."""
        for name in ("=__entry__", "k" * 200, "Ärger", "__grp__k"):
            content = {f"{name}.json": CONTENT["add.json"], f"{name}.cubin": b"binary"}
            unpacked(root, Source().add(content))
            assert whole(root, 0, content)
            shutil.rmtree(entry(root, 0))

    def test_nobody_is_said_to_have_compiled_it_here(self, root):
        unpacked(root, Source().add())
        assert read_manifest(str(entry(root, 0)))[0].origin is None

    def test_each_file_is_written_once_and_never_linked(self, root):
        """The staged directory itself becomes the entry."""
        unpacked(root, Source().add())
        assert {path.stat().st_nlink for path in entry(root, 0).iterdir()} == {1}

    def test_the_size_of_the_store_has_its_bytes(self, root):
        unpacked(root, Source().add(recipe=b"{}").add())
        taken = sum(path.stat().st_size for path in Path(root).glob("gpucache/v1/store/*/*/*"))
        said = json.loads(Path(root, "gpucache/v1/stats/size").read_text())
        assert said[0] == taken
        assert total_bytes(root) is None  # nobody has counted yet

    def test_of_a_long_pack_the_size_is_written_now_and_then(self, root):
        """A killed run has counted nearly all that it made."""
        source, seen = Source(), []
        for _ in range(120):
            source.add({"add.json": CONTENT["add.json"]})
        size = Path(root, "gpucache/v1/stats/size")

        def look(done: int, total: int) -> None:
            seen.append(json.loads(size.read_text())[0] if size.exists() else 0)

        unpacked(root, source, on_progress=look)
        counted = sorted(set(seen))
        assert len(counted) == 3
        assert counted[1] - counted[0] == counted[2] - counted[1] > 0

    def test_what_is_there_stays_and_is_not_read_again(self, root):
        unpacked(root, Source().add())
        before = {path: path.stat().st_ino for path in entry(root, 0).iterdir()}
        done = unpacked(root, Source().add().add())
        assert ([one.key for one in done.there], [one.key for one in done.made]) == (
            [key(0)],
            [key(1)],
        )
        assert {path: path.stat().st_ino for path in entry(root, 0).iterdir()} == before

    def test_what_is_damaged_here_is_replaced(self, root):
        unpacked(root, Source().add())
        (entry(root, 0) / "add.cubin").write_bytes(b"")
        done = unpacked(root, Source().add())
        assert [one.key for one in done.made] == [key(0)]
        assert whole(root, 0)
        assert os.listdir(f"{root}/gpucache/v1/locks") == []

    def test_only_what_is_chosen_is_taken(self, root):
        done = unpacked(root, Source().add().add(), chosen=lambda one: one.key == key(1))
        assert [one.key for one in done.made] == [key(1)]
        assert [(one.entry.key, one.why) for one in done.skipped] == [(key(0), "not chosen")]
        assert not entry(root, 0).exists()

    def test_a_dry_run_tells_the_same_and_writes_nothing(self, root):
        unpacked(root, Source().add())
        before = sorted(Path(root).rglob("*"))
        done = unpacked(root, Source().add().add(), dry_run=True)
        assert [len(done.made), len(done.there)] == [1, 1]
        assert sorted(Path(root).rglob("*")) == before

    def test_progress_counts_bytes_of_what_is_wanted_up_to_all(self, root):
        seen = []
        unpacked(root, Source().add().add(), on_progress=lambda *said: seen.append(said))
        total = 2 * sum(map(len, CONTENT.values()))
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)


class TestWhatContradicts:
    """A statement, signed or not, that its own files belie."""

    @pytest.mark.parametrize(
        ("metadata", "said"),
        [
            (b"{}", "no target or no name"),
            (b"[]", "no JSON object"),
            (CONTENT["add.json"].replace(b"90", b"80"), "another target"),
            (CONTENT["add.json"].replace(b"3.9.0", b"3.6.0"), "another Triton"),
            (CONTENT["add.json"].replace(b"{", b'{"hash":"%s",' % (b"ab" * 32), 1), "another key"),
        ],
    )
    def test_metadata_that_tell_of_another_kernel_end_it(self, metadata, said, root):
        with pytest.raises(BadPack, match=said) as refused:
            unpacked(root, Source().add({**CONTENT, "add.json": metadata}))
        assert (refused.value.code, refused.value.source) == ("contradiction", "a pack")
        assert not entry(root, 0).exists()
        assert staged(root) == []

    def test_a_library_that_is_cut_ends_it(self, root):
        with pytest.raises(BadPack, match="not whole"):
            unpacked(root, library(b"\x7fELF\x02" + bytes(50) + b"\xff" * 9), fitting=NODE)
        assert staged(root) == []

    def test_a_file_of_another_digest_ends_it_and_what_came_before_stays(self, root):
        source = Source().add().add()
        data = bytearray(tar_of(source))
        at = data.rindex(CONTENT["add.cubin"])
        data[at] ^= 1
        with pytest.raises(BadPack) as refused:
            unpacked(root, zstd_of(bytes(data)))
        assert refused.value.code == "file-digest"
        assert refused.value.taken == 1
        assert "(1 that came before the flaw" in str(refused.value)
        assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
        assert whole(root, 0)
        assert not entry(root, 1).exists()
        assert staged(root) == []


def tar_of(source: Source) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj().decompress(source.packed())


def zstd_of(tar: bytes) -> bytes:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        9, write_checksum=True, write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(tar)


ELF = b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + b"\x3e\0" + bytes(44) + b"code"
"""As long as its header says, for x86_64."""
ABI = "cpython-311-x86_64-linux-gnu"
NODE = Here("x86_64", ABI, "glibc-2.36", frozenset({"sm_90-16896-NVIDIA H100"}))


def library(data: bytes, tag: str = "", **fits: str) -> Source:
    return single(f"launcher.{ABI}.so", data, "library", tag, {**LIBRARY_FITS, **fits})


LIBRARY_FITS = {"machine": "x86_64", "abi": ABI, "libc": "glibc-2.36"}


def single(name: str, data: bytes, kind, tag: str, fits: dict[str, str]) -> Source:
    """A pack of one file that stands for itself."""
    facts = Facts(name, None, tag=tag)
    source = Source(ArchivedEntry(key(0), kind, facts, (archived(name, data),), None, fits))
    source.content[key(0), name] = data
    return source


class TestSingleFiles:
    @pytest.mark.parametrize(
        ("fits", "why"),
        [
            ({}, None),
            ({"libc": "glibc-2.17"}, None),
            ({"libc": "glibc-2.41"}, "libc"),
            ({"libc": "musl-1.2"}, "libc"),
            ({"machine": "aarch64"}, "machine"),
            ({"abi": "cpython-312-x86_64-linux-gnu"}, "abi"),
        ],
    )
    def test_a_library_is_taken_only_where_it_fits(self, fits, why, root):
        done = unpacked(root, library(ELF, **fits), fitting=NODE)
        assert [one.why for one in done.skipped] == ([why] if why else [])
        there = list(Path(root).glob("gpucache/v1/store/*/*"))
        assert [path.name for path in there] == ([] if why else [done.made[0].store_key])

    def test_an_autotuners_result_is_taken_only_for_the_same_device(self, root):
        for device, made in (("sm_90-16896-NVIDIA H200", 0), ("sm_90-16896-NVIDIA H100", 1)):
            source = single("k.autotune.json", b"{}", "autotune", device, {"device": device})
            assert len(unpacked(root, source, fitting=NODE).made) == made

    def test_a_statement_that_belies_a_tag_takes_nothing(self, root):
        """The key in the store is made of the tag."""
        tag = "cpython-312-x86_64-linux-gnu-glibc-2.36"
        source = single("launcher.so", ELF, "library", tag, LIBRARY_FITS)
        assert [one.why for one in unpacked(root, source, fitting=NODE).skipped] == ["libc"]
        (device,) = NODE.devices
        source = single("k.autotune.json", b"{}", "autotune", "another", {"device": device})
        assert [one.why for one in unpacked(root, source, fitting=NODE).skipped] == ["device"]
        source = single("launcher.so", ELF, "library", f"{ABI}-glibc-2.36", LIBRARY_FITS)
        assert len(unpacked(root, source, fitting=NODE).made) == 1

    def test_what_this_python_builds_fits_here(self):
        from gpucache.archive.fits import fits_of_library

        name = f"launcher.{here().abi}.so"
        fits = fits_of_library(name, "", Path(sys.executable).resolve().read_bytes()[:64])
        assert here().unfit(fits, "") is None


class TestUnits:
    """Units of TorchInductor's, none of which has a key."""

    GRAPHS = tuple(
        f"fxgraph/ab/f{digest(letter)}/{digest(letter.upper())}" for letter in ("g", "h", "i")
    )

    def packed(self, *fits: dict[str, str]) -> Source:
        entries = []
        for name, one in zip(self.GRAPHS, fits, strict=True):
            files = (archived(name, name.encode()),)
            entries.append(ArchivedEntry("", "inductor", Facts(name, None), files, None, one))
        source = Source(*entries)
        source.content = {("", name): name.encode() for name in self.GRAPHS}
        return source

    def test_what_is_there_or_fits_elsewhere_is_not_taken_with_the_rest(self, root):
        source = self.packed({}, {"torch": "0.1"}, {})
        done = unpacked(root, source, is_own=True)
        assert [len(done.made), [one.why for one in done.skipped]] == [2, ["torch"]]
        assert [Path(root, name).exists() for name in self.GRAPHS] == [True, False, True]
        Path(root, self.GRAPHS[2]).unlink()
        first = Path(root, self.GRAPHS[0]).stat()
        done = unpacked(root, source, is_own=True)
        assert [len(done.made), len(done.there), len(done.skipped)] == [1, 1, 1]
        assert os.path.samestat(Path(root, self.GRAPHS[0]).stat(), first)
        assert Path(root, self.GRAPHS[2]).read_bytes() == self.GRAPHS[2].encode()


class TestLocks:
    def test_a_key_whose_lock_is_held_is_taken_at_the_end(self, root):
        lock = KeyLock(f"{root}/gpucache/v1/locks/{key(0)}.lock")
        assert lock.try_acquire(None, "a compile")
        seen = []

        def look(done: int, total: int) -> None:
            seen.append((entry(root, 0).exists(), entry(root, 1).exists()))

        try:
            done = unpacked(root, Source().add().add().add(), on_progress=look)
        finally:
            lock.release()
        assert seen[-1] == (False, True)
        assert {one.key for one in done.made} == {key(0), key(1), key(2)}
        assert whole(root, 0)

    def test_a_damaged_entry_whose_lock_is_held_to_the_end_is_told(self, root):
        unpacked(root, Source().add())
        (entry(root, 0) / "add.cubin").write_bytes(b"")
        with another_process_holding(f"{root}/gpucache/v1/locks/{key(0)}.lock"):
            done = unpacked(root, Source().add())
        assert [(one.why, one.entry.key) for one in done.skipped] == [("busy", key(0))]
        assert staged(root) == []

    def test_a_caller_who_holds_the_lock_has_what_is_damaged_replaced(self, root):
        unpacked(root, Source().add())
        (entry(root, 0) / "add.cubin").write_bytes(b"")
        with another_process_holding(f"{root}/gpucache/v1/locks/{key(0)}.lock"):
            done = unpacked(root, Source().add(), locked_key=key(0))
        assert [one.key for one in done.made] == [key(0)]
        assert whole(root, 0)

    def test_a_compile_that_was_faster_keeps_its_entry(self, root, monkeypatch):
        """Between the look and the rename another process publishes: the loser says so, and leaves nothing."""
        source, rename = Source().add(), os.rename

        def renaming(old: str, new: str, **where: int) -> None:
            if new == str(entry(root, 0)):
                monkeypatch.setattr(os, "rename", rename)
                unpacked(root, source)
            rename(old, new, **where)

        monkeypatch.setattr(os, "rename", renaming)
        done = unpacked(root, source)
        assert (done.made, [one.key for one in done.there]) == ((), [key(0)])
        assert staged(root) == []

    @pytest.mark.parametrize("slim_is_faster", [True, False])
    def test_a_slim_entry_and_the_same_one_with_all_files_replace_each_other_never(
        self, slim_is_faster, root
    ):
        """Of two packs that are unpacked at once; nothing is damaged, so that nothing is put in quarantine."""
        needed = {name: content for name, content in CONTENT.items() if kept(name)}
        faster, slower = (needed, CONTENT) if slim_is_faster else (CONTENT, needed)

        def publish_the_other(done: int, total: int) -> None:
            if not entry(root, 0).exists():
                unpacked(root, Source().add(faster))

        done = unpacked(root, Source().add(slower), on_progress=publish_the_other)
        assert (done.made, [one.key for one in done.there]) == ((), [key(0)])
        assert whole(root, 0, faster)
        assert not Path(root, "gpucache/v1/quarantine").exists()


class another_process_holding:  # noqa: N801  # used as a function is
    """Hold a lock file as another process would: by another opening of it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        Path(self.path).unlink()


class TestDisks:
    @pytest.fixture
    def small(self, mount: Callable[..., Path], tmp_path: Path) -> str:
        point = mount(
            tmp_path / "small", "-t", "tmpfs", "-o", "mode=0700,size=256k,nr_inodes=60", "none"
        )
        prepare(str(point), Trust())
        return str(point)

    def test_what_is_larger_than_the_room_is_refused_before_anything_is_written(self, small):
        source = Source().add({**CONTENT, "add.ptx": os.urandom(300_000)})
        before = os.statvfs(small)
        with pytest.raises(ProvisionError, match="make room") as refused:
            unpacked(small, source)
        assert refused.value.errno == errno.ENOSPC
        assert os.statvfs(small) == before

    def test_more_files_than_inodes_are_refused_before_anything_is_written(self, small):
        source = Source()
        for _ in range(12):
            source.add({**CONTENT, "add.ptx": b""})
        before = os.statvfs(small)
        with pytest.raises(ProvisionError, match="inodes"):
            unpacked(small, source)
        assert os.statvfs(small) == before

    def test_a_disk_that_fills_meanwhile_keeps_what_is_whole_and_nothing_else(self, small):
        source = Source()
        for _ in range(3):
            source.add({**CONTENT, "add.ptx": os.urandom(50_000)})
        filled = Path(small, "other")

        def fill(done: int, total: int) -> None:
            if entry(small, 0).exists() and not filled.exists():
                free = os.statvfs(small)
                filled.write_bytes(bytes((free.f_bavail - 5) * free.f_frsize))

        with pytest.raises(OSError, match="No space left") as refused:
            unpacked(small, source, on_progress=fill)
        assert refused.value.errno == errno.ENOSPC
        assert sound(str(entry(small, 0)), True, 0.0) is not None
        assert not entry(small, 1).exists()
        assert staged(small) == []
        filled.unlink()
        assert len(unpacked(small, source).made) == 2

    def test_what_cannot_be_published_is_not_left_in_tmp(self, root, monkeypatch):
        rename = os.rename

        def renaming(old: str, new: str, **where: int) -> None:
            if "/store/" in new:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), new)
            rename(old, new, **where)

        monkeypatch.setattr(os, "rename", renaming)
        with pytest.raises(OSError, match="No space left"):
            unpacked(root, Source().add().add())
        assert staged(root) == []

    def test_a_read_only_root_refuses_what_is_new_and_knows_what_is_there(
        self, mount, tmp_path, root
    ):
        unpacked(root, Source().add())
        point = mount(tmp_path / "image", "--bind", root)
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
        assert len(unpacked(str(point), Source().add()).there) == 1
        with pytest.raises(OSError, match="Read-only file system"):
            unpacked(str(point), Source().add().add())

    def test_a_mount_that_renames_no_directory_gets_its_files_one_by_one(self, root, monkeypatch):
        rename = os.rename

        def renaming(old: str, new: str, **where: int) -> None:
            if os.path.isdir(old) and "/store/" in new:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM), old)
            rename(old, new, **where)

        monkeypatch.setattr(os, "rename", renaming)
        done = unpacked(root, Source().add())
        assert [one.key for one in done.made] == [key(0)]
        assert whole(root, 0)
        assert staged(root) == []

    def test_an_entry_that_root_unpacks_for_a_user_is_that_users(self, as_root, root):
        shutil.rmtree(root)
        os.chmod(Path(root).parent, 0o755)
        os.mkdir(root, 0o700)
        os.chown(root, ADA, ADA)
        prepare(root, Trust(uids=frozenset({ADA})))
        unpacked(root, Source().add(recipe=b"{}"))
        owners = {path.stat().st_uid for path in [entry(root, 0), *entry(root, 0).iterdir()]}
        assert owners == {ADA}

    def test_an_unsafe_root_is_refused(self, as_root, tmp_path):
        where = tmp_path / "open"
        where.mkdir(mode=0o777)
        where.chmod(0o777)
        with pytest.raises(UnsafeDirectoryError):
            prepare(str(where), Trust())


UNPACK = (
    SCRIPT
    + """
import tempfile
import zstandard
from gpucache.archive import compression, errors, members, signature, staged_entry, statement, ustar
from gpucache.archive.read import PackReader
from gpucache.archive.unpack import unpack
import gpucache.disk.within, gpucache.store.quarantine, gpucache.store.key_lock, gpucache.layout.keys
root, pack = sys.argv[2:]
tempfile.gettempdir()  # which tries whether it can be written
with open(pack, "rb") as file, PackReader(file, signature.anyone, source_name=pack) as reader:
    mark("begin")
    unpack(reader, root)
    mark("end")
"""
)


def test_killed_at_any_system_call_the_store_is_whole_and_a_second_run_goes_on(every_call):
    """Three entries, of which the first is damaged in the store, so that it is moved aside under its lock."""
    source = Source().add(recipe=b"{}").add().add()
    data = source.packed()

    def start(home: Path) -> list[object]:
        root = str(home / "root")
        prepare(root, Trust())
        unpacked(root, Source().add())
        (entry(root, 0) / "add.cubin").write_bytes(b"cut")
        (home / "pack").write_bytes(data)
        return [root, home / "pack"]

    def check(home: Path, line: str) -> None:
        root = str(home / "root")
        for path in Path(root).glob("gpucache/v1/store/*/*"):
            if path.name != key(0) and (path / MANIFEST).exists():
                assert sound(str(path), True, 0.0) is not None, line
        aged(Path(root))
        done = unpacked(root, data)
        assert len(done.made) + len(done.there) == 3, line
        assert all(whole(root, number) for number in range(3)), line
        sweep_dead(f"{root}/gpucache/v1/tmp")  # as the next process does that stages something
        assert staged(root) == [], line
        found = verify(root).findings
        assert not found, (line, found)
        # A killed holder's lock file goes with the key's next holder, what was damaged after a week.
        kinds = {stray.kind for stray in scan(root).strays if stray.dead}
        assert kinds <= {"lock", "quarantine"}, line

    every_call.killed_everywhere(UNPACK, start, check, least=30)


def test_a_pack_from_a_pipe_that_ends_early_leaves_what_was_whole(root):
    data = Source().add().add({**CONTENT, "add.ptx": os.urandom(10**6)}).packed()
    reading, writing = os.pipe()
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[:-1000])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=writing, env=BARE
    ) as writer:
        os.close(writing)
        writer.stdin.write(data)
        writer.stdin.close()
        with (
            open(reading, "rb") as source,
            pytest.raises(BadPack),
            PackReader(source, anyone, source_name="-") as reader,
        ):
            unpack(reader, root)
    assert whole(root, 0)
    assert not entry(root, 1).exists()
    assert staged(root) == []
