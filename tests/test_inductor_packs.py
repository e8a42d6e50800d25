"""TorchInductor's files in packs: what is packed, what is taken, from whom and where, and that torch then hits."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.every_call import SCRIPT
from support.inductor_files import (
    AUTOGRAD,
    CPU_GRAPH,
    FILES,
    GRAPH,
    LIBRARY,
    SOURCE,
    UNITS,
    code_path,
    inductor_files,
    leave,
)
from support.packs import Source
from support.ranks import PLUGIN
from support.users import ADA

from gpucache.archive import inductor, processor
from gpucache.archive.collect import NotCollected
from gpucache.archive.inductor import collect_unit, units_in
from gpucache.archive.processor import digest_of
from gpucache.archive.read import PackReader
from gpucache.archive.signature import anyone
from gpucache.archive.unpack import unpack
from gpucache.disk.staging import sweep_dead
from gpucache.disk.vetting import Trust
from gpucache.store.preparing import prepare
from gpucache.store.pulled import pulls

SO = code_path(LIBRARY, ".main.so")


class Fleet:
    """Two roots, and a pack of the first."""

    def __init__(self, tmp_path: Path, gpucache) -> None:
        self.first, self.second = tmp_path / "first", tmp_path / "second"
        self.file = tmp_path / "pack.tar.zst"
        self.gpucache = gpucache
        self.env = dict(os.environ)

    def pack(self, *words: str):
        words = ("pack", "-o", self.file, "--inductor", "--root", self.first, "--json", *words)
        done = self.gpucache(*words, env=self.env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def unpack(self, *words: str, file: object = None, **options):
        words = ("unpack", file or self.file, "--root", self.second, "--json", *words)
        done = self.gpucache(*words, env=self.env, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def signed(self) -> None:
        """From now on packs are signed, and that signature believed."""
        where = self.file.parent
        done = self.gpucache("keygen", "ci", cwd=where, env={**self.env})
        assert done.returncode == 0, done.stderr
        self.env["GPUCACHE_SIGN_KEY"] = str(where / "ci.key")
        self.env["GPUCACHE_TRUST_KEYS"] = done.stdout.strip()


@pytest.fixture
def torch_there(tmp_path, monkeypatch) -> None:
    """Python has a torch, as far as its version is asked for."""
    metadata = tmp_path / "site/torch-2.13.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
def fleet(tmp_path, gpucache, torch_there) -> Fleet:
    made = Fleet(tmp_path, gpucache)
    leave(made.first)
    return made


def units(rows) -> set[str]:
    return {row["key"] for row in rows}


class TestPack:
    def test_each_unit_is_an_entry_where_asked_for(self, fleet):
        row = fleet.pack()
        assert units(row["entries"]) == UNITS
        assert {one["kind"] for one in row["entries"]} == {"inductor"}
        assert row["bytes"] == sum(map(len, FILES.values()))

    def test_none_is_packed_unless_asked_for(self, fleet):
        done = fleet.gpucache("pack", "-o", fleet.file, "--root", fleet.first)
        assert (done.returncode, fleet.file.exists()) == (1, False)

    def test_what_was_used_before_is_left_by_used_since(self, fleet):
        for name in set(FILES) - {GRAPH}:
            os.utime(fleet.first / name, (1, 1))
        assert units(fleet.pack("--used-since", "1h")["entries"]) == {GRAPH}

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            (SO, b""),
            (SO, b"\x7fELF\x02"),
            (SO, b"\0" * 5000),
            (code_path(SOURCE, ".py"), b""),
            (code_path(SOURCE, ".py"), b"answer = (4"),
            (code_path(SOURCE, ".py"), b"\0" * 50),
            (code_path(SOURCE, ".best_config"), b'{"num_'),
            (code_path(SOURCE, ".py"), b"#" * (2**24 + 1)),
            (GRAPH, b""),
        ],
    )
    def test_what_torch_would_fail_of_is_left_out_and_told(self, fleet, name, content):
        """Torch asks only whether a file is there: a cut one would fail on each node."""
        (fleet.first / name).write_bytes(content)
        row = fleet.pack()
        (left,) = row["left_out"]
        assert (left["why"], name in left["fact"]) == ("damaged", True)
        assert len(row["entries"]) == len(UNITS) - 1

    @pytest.mark.parametrize("unknown", ["torch_version", "instructions"])
    def test_a_library_for_which_nobody_knows_where_it_fits_is_left_out(
        self, fleet, monkeypatch, unknown
    ):
        """As where gpucache has a Python of its own, without torch."""
        monkeypatch.setattr(inductor, unknown, lambda: "")
        (unit,) = (one for one in units_in(str(fleet.first)) if one.path.endswith(".cpp"))
        with pytest.raises(NotCollected) as caught:
            collect_unit(str(fleet.first), unit, None)
        assert caught.value.why == "unknown library"

    def test_a_library_that_is_being_built_is_left_out(self, fleet):
        path = fleet.first / f"locks/{LIBRARY}.lock"
        path.parent.mkdir()
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert units(fleet.pack()["entries"]) == UNITS - {LIBRARY}

    @pytest.mark.root
    @pytest.mark.parametrize("name", [GRAPH, os.path.dirname(GRAPH)])
    def test_what_another_user_could_have_written_is_left_out(self, fleet, name):
        os.chown(fleet.first / name, ADA, ADA)
        row = fleet.pack()
        assert [one["why"] for one in row["left_out"]] == ["unsafe"]
        assert units(row["entries"]) == UNITS - {GRAPH}

    def test_headers_locks_and_timings_stay(self, fleet):
        leave(fleet.first, {f"cache/{'0' * 64}": b"{}", f"locks/{SOURCE}.lock": b""})
        leave(fleet.first, {code_path(LIBRARY, ".h"): b"x"})
        assert units(fleet.pack()["entries"]) == UNITS
        fleet.unpack("--unsigned")
        assert inductor_files(fleet.second) == FILES

    def test_what_was_unpacked_can_be_packed_again(self, fleet):
        """Then files are pinned, since the root is gpucache's."""
        fleet.pack("--number", "1")
        first = fleet.file.read_bytes()
        fleet.unpack("--unsigned")
        fleet.first = fleet.second
        assert fleet.pack("--number", "1")["left_out"] == []
        assert fleet.file.read_bytes() == first
        assert list((fleet.second / "gpucache/v1/tmp").iterdir()) == []

    def test_equal_roots_give_equal_packs(self, fleet):
        fleet.pack("--number", "1")
        first = fleet.file.read_bytes()
        moved = fleet.first.rename(fleet.first.parent / "moved")
        shutil.copytree(moved, fleet.first)
        fleet.pack("--number", "1")
        assert fleet.file.read_bytes() == first


class TestUnpack:
    def test_a_signed_pack_is_taken_from_anywhere(self, fleet):
        fleet.signed()
        fleet.pack()
        with fleet.file.open("rb") as file:
            row = fleet.unpack(file="-", stdin=file)
        assert (row["signer"], units(row["made"])) == ("ci", UNITS)
        assert inductor_files(fleet.second) == FILES

    def test_an_unsigned_one_is_taken_from_a_file_of_this_very_user(self, fleet):
        fleet.pack()
        assert units(fleet.unpack("--unsigned")["made"]) == UNITS

    def test_an_unsigned_one_is_not_taken_from_a_pipe(self, fleet):
        """Nobody knows who wrote that."""
        fleet.pack()
        with subprocess.Popen(["cat", fleet.file], stdout=subprocess.PIPE) as cat:
            row = fleet.unpack("--unsigned", file="-", stdin=cat.stdout)
        assert {one["why"] for one in row["skipped"]} == {"unsigned"}
        assert units(row["skipped"]) == UNITS
        assert inductor_files(fleet.second) == {}

    @pytest.mark.root
    def test_an_unsigned_one_is_not_taken_from_a_trusted_users_file(self, fleet):
        """Kernels are: what is believed of him is that he compiles, not that he may run anything here."""
        fleet.pack()
        os.chown(fleet.file, ADA, ADA)
        fleet.env["GPUCACHE_TRUST_UIDS"] = str(ADA)
        row = fleet.unpack("--unsigned")
        assert units(row["skipped"]) == UNITS
        assert inductor_files(fleet.second) == {}

    def test_what_is_there_stays_and_is_told(self, fleet):
        fleet.pack()
        leave(fleet.second, {GRAPH: b"its own", SO: b"its own"})
        row = fleet.unpack("--unsigned")
        assert units(row["there"]) == {GRAPH}
        assert units(row["made"]) == UNITS - {GRAPH}
        assert inductor_files(fleet.second) == {**FILES, GRAPH: b"its own", SO: b"its own"}
        assert units(fleet.unpack("--unsigned")["there"]) == UNITS

    def test_a_dry_run_takes_nothing(self, fleet):
        fleet.pack()
        assert units(fleet.unpack("--unsigned", "--dry-run")["made"]) == UNITS
        assert not fleet.second.exists()

    def test_what_torch_builds_meanwhile_is_left_to_torch_and_told(self, fleet):
        fleet.pack()
        path = fleet.second / f"locks/{LIBRARY}.lock"
        leave(fleet.second, {f"locks/{LIBRARY}.lock": b""})
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            row = fleet.unpack("--unsigned")
        assert [(one["key"], one["why"]) for one in row["skipped"]] == [(LIBRARY, "busy")]
        assert units(row["made"]) == UNITS - {LIBRARY}
        assert units(fleet.unpack("--unsigned")["made"]) == {LIBRARY}

    @pytest.mark.parametrize("place", ["fxgraph", "locks"])
    def test_what_a_link_is_in_the_way_of_is_left_out_and_told(self, fleet, place):
        """What else there is comes all the same."""
        fleet.pack()
        elsewhere = fleet.first.parent / "elsewhere"
        elsewhere.mkdir()
        prepare(str(fleet.second), Trust())
        (fleet.second / place).symlink_to(elsewhere)
        row = fleet.unpack("--unsigned")
        kept = {GRAPH, CPU_GRAPH} if place == "fxgraph" else {LIBRARY}
        assert units(row["skipped"]) == kept
        assert {(one["why"], one["fact"]) for one in row["skipped"]} == {
            ("busy", f"{fleet.second}/{place} is a link, or no directory")
        }
        assert units(row["made"]) == UNITS - kept
        assert list(elsewhere.iterdir()) == []

    def test_nobody_looks_in_the_store_for_how_much_of_it_is_used(self, fleet):
        fleet.pack()
        fleet.unpack("--unsigned")
        assert not any(pulled.entries for pulled in pulls(str(fleet.second)))

    def test_nothing_is_left_of_staging(self, fleet):
        fleet.pack()
        fleet.unpack("--unsigned")
        assert list((fleet.second / "gpucache/v1/tmp").iterdir()) == []


class TestARemote:
    @pytest.fixture
    def remote(self, fleet, tmp_path) -> Fleet:
        (tmp_path / "remote").mkdir()
        fleet.env["GPUCACHE_REMOTE"] = f"file://{tmp_path}/remote?mode=write"
        return fleet

    def run(self, fleet: Fleet, *words: object):
        done = fleet.gpucache(*words, "--json", env=fleet.env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def test_brings_what_a_trusted_key_has_signed(self, remote):
        remote.signed()
        remote.pack()
        self.run(remote, "push", remote.file)
        self.run(remote, "pull", "pack", "--root", remote.second)
        assert inductor_files(remote.second) == FILES

    def test_whose_owner_is_believed_brings_nothing_of_torchs_unsigned(self, remote):
        """Kernels come so: that somebody compiles for others is less than that he runs code as they."""
        remote.pack()
        remote.env["GPUCACHE_REMOTE"] += "&trust=owner"
        self.run(remote, "push", remote.file)
        row = self.run(remote, "pull", "pack", "--root", remote.second)
        assert {one["why"] for one in row["skipped"]} == {"unsigned"}
        assert inductor_files(remote.second) == {}


@pytest.mark.usefixtures("torch_there")
class TestFits:
    """On another processor a library dies, and a graph's C++ has the wrong width; torch's keys tell neither."""

    def fits(self, entry) -> object:
        return inductor.unfit(entry, inductor.here())

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        leave(tmp_path / "files")
        self.path = tmp_path / "files"

    def entry(self, name: str):
        files = (inductor.ArchivedFile(name, len(FILES[name]), "0" * 64),)
        facts = inductor.Facts(name, None)
        return inductor.ArchivedEntry(
            "", "inductor", facts, files, None, inductor.fits_of(name, str(self.path / name))
        )

    @pytest.mark.parametrize(
        ("name", "why"), [(SO, "cpu"), (CPU_GRAPH, "cpu"), (GRAPH, None), (AUTOGRAD, None)]
    )
    def test_what_is_for_the_processor_is_for_one_with_its_instructions(
        self, name, why, monkeypatch
    ):
        entry = self.entry(name)
        assert self.fits(entry) is None
        monkeypatch.setattr(inductor, "instructions", lambda: "0" * 16)
        assert self.fits(entry) == why

    def test_a_graph_is_looked_through_to_its_end(self):
        """Also where what is looked for lies across two parts that are read."""
        for length in (2**20 - 5, 2**20, 3 * 2**20 - 1):
            (self.path / GRAPH).write_bytes(b"x" * length + FILES[CPU_GRAPH])
            assert self.entry(GRAPH).fits.keys() == {"cpu"}

    @pytest.mark.parametrize(("name", "why"), [(SO, "torch"), (CPU_GRAPH, None), (GRAPH, None)])
    def test_a_library_is_for_the_torch_that_it_was_built_with(self, name, why, monkeypatch):
        entry = self.entry(name)
        monkeypatch.setattr(inductor, "torch_version", lambda: "1.0")
        assert self.fits(entry) == why

    @pytest.mark.parametrize(
        ("name", "what", "asked"),
        [
            (SO, "cpu", "instructions"),
            (SO, "torch", "torch_version"),
            (CPU_GRAPH, "cpu", "instructions"),
        ],
    )
    def test_what_nobody_knows_fits_nowhere(self, name, what, asked, monkeypatch):
        entry = self.entry(name)
        assert self.fits(entry._replace(fits={**entry.fits, what: ""})) == what
        monkeypatch.setattr(inductor, asked, lambda: "")
        assert self.fits(entry) == what
        assert self.fits(entry._replace(fits={**entry.fits, what: ""})) == what

    @pytest.mark.parametrize("what", ["machine", "abi", "libc"])
    def test_a_library_is_for_one_machine_and_python_and_libc(self, what):
        entry = self.entry(SO)
        assert self.fits(entry._replace(fits={**entry.fits, what: "musl-1.0"})) == what

    @pytest.mark.parametrize("what", ["machine", "abi", "libc", "cpu", "torch"])
    def test_a_library_that_does_not_say_so_is_not_taken(self, what):
        entry = self.entry(SO)
        fits = {name: value for name, value in entry.fits.items() if name != what}
        assert self.fits(entry._replace(fits=fits)) == "machine"


class TestInstructions:
    CPUINFO = "processor : 0\nflags\t\t: fpu avx avx2 {}\n\nprocessor : 1\nflags\t\t: fpu\n"

    def test_are_those_that_a_compiler_heeds(self):
        """A kernel or a hypervisor adds and hides others."""
        one = digest_of("x86_64", self.CPUINFO.format("ibrs constant_tsc"))
        assert one == digest_of("x86_64", self.CPUINFO.format("hypervisor md_clear"))
        assert one != digest_of("x86_64", self.CPUINFO.format("avx512f"))

    def test_of_arm_are_all_that_it_names(self):
        said = "Features\t: fp asimd sve\n"
        assert digest_of("aarch64", said) != digest_of("aarch64", "Features\t: fp asimd\n")
        assert digest_of("aarch64", said) != digest_of("x86_64", "Features\t: fp asimd\n")

    def test_are_unknown_where_the_system_does_not_tell(self, monkeypatch):
        assert digest_of("x86_64", "nothing") == ""
        processor.instructions.cache_clear()

        def refuse(*_: object) -> bytes:
            raise FileNotFoundError

        monkeypatch.setattr(processor, "read_head", refuse)
        assert processor.instructions() == ""
        processor.instructions.cache_clear()


UNPACK = (
    SCRIPT
    + """
import tempfile
import zstandard
from gpucache.archive import compression, members, signature, staged_unit
from gpucache.archive.read import PackReader
from gpucache.archive.unpack import unpack
root, pack = sys.argv[2:]
tempfile.gettempdir()  # which tries whether it can be written
with open(pack, "rb") as file, PackReader(file, signature.anyone, source_name=pack) as reader:
    mark("begin")
    unpack(reader, root, is_own=True)
    mark("end")
"""
)


def test_killed_at_any_system_call_each_file_is_whole_and_a_second_run_goes_on(every_call):
    """Code under torch's lock, a source and a graph."""
    source = Source()
    content = {}
    for names in (
        (code_path(LIBRARY, ".cubin"), code_path(LIBRARY, ".main.cpp")),
        (code_path(SOURCE, ".py"),),
        (GRAPH,),
    ):
        files = {name: FILES.get(name, b"a cubin") for name in names}
        source.add_unit(files)
        content |= files
    data = source.packed()

    def start(home: Path) -> list[object]:
        prepare(str(home / "root"), Trust())
        (home / "pack").write_bytes(data)
        return [home / "root", home / "pack"]

    def check(home: Path, line: str) -> None:
        root = home / "root"
        there = inductor_files(root)
        assert there.items() <= content.items(), line
        with PackReader(io.BytesIO(data), anyone, source_name="a pack") as reader:
            done = unpack(reader, str(root), is_own=True)
        assert len(done.made) + len(done.there) == 3, line
        assert inductor_files(root) == content, line
        sweep_dead(f"{root}/gpucache/v1/tmp")  # as the next process does that stages something
        left = (root / "gpucache/v1/tmp").rglob("*")
        assert not any(path.is_file() for path in left), line

    every_call.killed_everywhere(UNPACK, start, check, least=20)


@pytest.mark.torch
class TestTorch:
    """The real torch on the CPU: a node that has unpacked compiles no graph."""

    PROGRAM = Path(__file__).parent / "support/compile_model.py"

    def compiled(self, root: Path, home: Path, **more: str) -> dict[str, float]:
        """What the program says on a node of its own, whose root this is."""
        home.mkdir(exist_ok=True)
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root), "TMPDIR": str(home), **more}
        done = subprocess.run(
            [sys.executable, self.PROGRAM], env=env, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said: dict[str, float] = json.loads(done.stdout)
        assert said.pop("distance") < 1e-5
        return said

    def test_a_second_node_hits_with_aot_and_with_fx_and_builds_nothing(
        self, tmp_path, gpucache, monkeypatch
    ):
        """In another root; and beside what was unpacked torch writes no file but its locks."""
        fleet = Fleet(tmp_path, gpucache)
        fleet.first.mkdir(mode=0o700)
        missed = {"fxgraph_cache_miss": 2, "autograd_cache_miss": 1}
        hit = {"fxgraph_cache_hit": 2, "autograd_cache_hit": 1}
        assert self.compiled(fleet.first, tmp_path / "home1") == missed
        # what docs/what-a-pack-tells.md says of graphs
        graphs = [path.read_bytes() for path in fleet.first.glob("fxgraph/*/*/*")]
        assert any(str(fleet.first).encode() in graph for graph in graphs)
        assert all(str(self.PROGRAM).encode() in graph for graph in graphs)
        fleet.signed()
        assert len(fleet.pack()["entries"]) >= 5
        shutil.rmtree(fleet.first)
        shutil.rmtree(tmp_path / "home1")
        fleet.unpack()
        before = inductor_files(fleet.second)
        assert self.compiled(fleet.second, tmp_path / "home2") == hit
        assert inductor_files(fleet.second) == before

    def test_graphs_alone_hit_too_and_their_code_is_built_anew(self, tmp_path, gpucache):
        """As on a node with another processor's libraries, of which none fits."""
        fleet = Fleet(tmp_path, gpucache)
        fleet.first.mkdir(mode=0o700)
        self.compiled(fleet.first, tmp_path / "home")
        for path in fleet.first.glob("??/*"):
            path.unlink()
        fleet.pack()
        fleet.unpack("--unsigned")
        hit = {"fxgraph_cache_hit": 2, "autograd_cache_hit": 1}
        assert self.compiled(fleet.second, tmp_path / "home") == hit


@pytest.mark.torch
@pytest.mark.compiles
class TestAGpu:
    """Graphs that the real torch compiles for a GPU that is not there; torch's key of a graph has the GPU's number."""

    PROGRAM = Path(__file__).parent / "support/cached_graph.py"

    def compiled(self, root: Path, index: int, target: str = "sm_90") -> dict[str, int]:
        names = ("GPUCACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        env = {**os.environ, **dict.fromkeys(names, str(root)), **PLUGIN}
        done = subprocess.run(
            [sys.executable, self.PROGRAM, target, str(index)],
            env=env,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said: dict[str, int] = json.loads(done.stdout)
        return said

    def test_a_second_node_takes_graphs_for_its_gpu_of_that_number_and_kernels_for_all(
        self, tmp_path, gpucache
    ):
        """A rank that sees one GPU (`CUDA_VISIBLE_DEVICES`) calls that 0, whichever it is."""
        fleet = Fleet(tmp_path, gpucache)
        fleet.first.mkdir(mode=0o700)
        first = self.compiled(fleet.first, 0)
        assert (first["hit"], first["miss"]) == (0, 1)
        assert first["compiled"] > 0
        fleet.pack()
        shutil.rmtree(fleet.first)
        fleet.unpack("--unsigned")
        assert self.compiled(fleet.second, 0) == {"hit": 1, "miss": 0, "compiled": 0}
        assert self.compiled(fleet.second, 1) == {"hit": 0, "miss": 1, "compiled": 0}
        # The sources of Inductor's kernels, which are kept with the recipes, came too.
        warm = ("warm", "--store", "--arch", "sm_80", "--json", "--root", fleet.second)
        done = fleet.gpucache(*warm, env=fleet.env)
        assert json.loads(done.stdout)["counts"] == {"made": first["compiled"]}, done.stderr
        assert self.compiled(fleet.second, 0, "sm_80") == {"hit": 0, "miss": 1, "compiled": 0}
