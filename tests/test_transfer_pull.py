"""`gpucache pull`: what a remote has comes into the store, by whom it is believed, and what is told of the rest."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import check, documented, on_a_terminal, told
from support.hostile_packs import cases
from support.hostile_parts import Parts
from support.launches import another_process, kernel, launched
from support.processes import PATIENCE_S, running
from support.pulled_packs import Packs, pull_files
from support.read_through import Entries

from gpucache.archive.errors import BadPack
from gpucache.archive.signature import make_key
from gpucache.cli import transfer_pull
from gpucache.disk.vetting import Trust
from gpucache.environment import STALL_TIMEOUT
from gpucache.remote.errors import NotThere, RemoteError
from gpucache.remote.opening import open_remote
from gpucache.remote.pulls import Pull, pulling
from gpucache.remote.trusting import judge_of
from gpucache.remote.url import RemoteUrl
from gpucache.store.stats import totals
from gpucache.transfer import pull as pulling_module
from gpucache.transfer import pull_entries as pull_entries_module
from gpucache.transfer import source as source_module
from gpucache.transfer.bring import make_ready
from gpucache.transfer.pull import PulledPack, pull_pack
from gpucache.transfer.pull_entries import PulledEntries, pull_entries
from gpucache.transfer.source import Source
from gpucache.upkeep.verify import verify

SEEDS = [f"kernel {number}" for number in range(5)]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packs:
    """A remote that this process reads from."""
    packs = Packs.signed(tmp_path)
    for name, value in packs.environ.items():
        monkeypatch.setenv(name, value)
    return packs


@pytest.fixture
def singles(remote: Packs) -> Entries:
    """The same remote, for single entries."""
    return Entries(remote.directory, remote.signing)


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process caches in the root."""
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    monkeypatch.delenv("GPUCACHE_SIGN_KEY", raising=False)
    another_process(monkeypatch)


def pulled(root: Path, name: str = "llama", **options: object) -> PulledPack:
    url = RemoteUrl.configured(os.environ)
    assert url is not None
    judge = judge_of(url, os.environ)
    assert judge is not None
    return pull_pack(open_remote(url, os.environ), name, str(root), Trust(), judge, **options)


def pulled_entries(root: Path, **options: object) -> PulledEntries:
    url = RemoteUrl.configured(os.environ)
    assert url is not None
    judge = judge_of(url, os.environ)
    assert judge is not None
    return pull_entries(open_remote(url, os.environ), str(root), Trust(), judge, **options)


def hits(seeds: list[str]) -> int:
    return sum(launched(*kernel(seed))[0] for seed in seeds)


class TestAPack:
    def test_each_kernel_is_a_hit(self, remote, root):
        remote.put("llama", SEEDS, number=7)
        done = pulled(root)
        assert len(done.unpacked.made) == 5
        assert (done.statement.number, done.signer, done.seen) == (7, "ci", None)
        assert hits(SEEDS) == 5

    def test_a_second_pull_reads_the_statement_and_no_more(self, remote, root, monkeypatch):
        draw = random.Random(0)
        large = [draw.randbytes(30_000).hex() for _ in range(4)]  # 3 MB each, and 30 KB packed
        remote.put("llama", large)
        pulled(root)
        done = pulled(root)
        assert len(done.unpacked.there) == 4
        assert done.unpacked.made == ()
        assert done.received_bytes < remote.path("llama").stat().st_size * 0.7

    def test_what_was_interrupted_goes_on(self, remote, root):
        path = remote.put("llama", SEEDS)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 4 // 5])
        with pytest.raises(BadPack) as cut:
            pulled(root)
        assert cut.value.code == "truncated"
        path.write_bytes(whole)
        done = pulled(root)
        assert len(done.unpacked.made) + len(done.unpacked.there) == 5
        assert hits(SEEDS) == 5

    def test_a_dry_run_tells_and_changes_nothing(self, remote, root):
        remote.put("llama", SEEDS)
        done = pulled(root, dry_run=True)
        assert len(done.unpacked.made) == 5
        assert not root.exists()

    def test_only_what_is_chosen_is_taken(self, remote, root):
        remote.put("llama", SEEDS)
        done = pulled(root, chosen=lambda entry: entry.key == kernel(SEEDS[2])[0])
        assert [entry.key for entry in done.unpacked.made] == [kernel(SEEDS[2])[0]]
        assert len(done.unpacked.skipped) == 4

    def test_it_is_counted(self, remote, root):
        remote.put("llama", SEEDS)
        done = pulled(root)
        sums = list(totals(str(root)).values())
        assert sum(values.get("pulled", 0) for values in sums) == 5
        assert sum(values.get("pulled_bytes", 0) for values in sums) == done.received_bytes > 0

    def test_there_is_none(self, remote, root):
        with pytest.raises(NotThere):
            pulled(root, "llama")

    def test_no_path_is_a_name(self, remote, root):
        for name in ("../llama", "a/b", "", ".", "x" * 200):
            with pytest.raises(ValueError):
                pulled(root, name)


class TestWhoIsBelieved:
    def test_a_pack_served_under_another_name_is_refused(self, remote, root):
        remote.put("llama-old", SEEDS, served_as="llama")
        with pytest.raises(BadPack) as refused:
            pulled(root, "llama")
        assert refused.value.code == "another-name"
        assert "'llama-old'" in refused.value.problem
        assert hits(SEEDS) == 0

    def test_a_single_entry_served_as_a_pack_is_refused(self, remote, singles, root):
        singles.add(*kernel("one"))
        os.replace(singles.path(kernel("one")[0]), remote.path("llama"))
        with pytest.raises(BadPack) as refused:
            pulled(root, "llama")
        assert refused.value.code == "another-name"

    def test_a_lower_number_than_one_that_was_seen_is_told(self, remote, root):
        remote.put("llama", SEEDS, number=7)
        assert not pulled(root).is_older
        remote.put("llama", SEEDS[:3], number=6)
        done = pulled(root)
        assert done.is_older
        assert done.seen == 7
        remote.put("llama", SEEDS, number=8)
        assert not pulled(root).is_older

    def test_the_number_of_a_pack_that_is_cut_is_remembered(self, remote, root):
        """Else whoever may write the remote, and has no key, could hide a newer pack by its last byte."""
        path = remote.put("llama", SEEDS, number=7)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BadPack):
            pulled(root)
        remote.put("llama", SEEDS, number=6)
        assert pulled(root).is_older

    def test_a_number_is_only_remembered_of_a_pack_that_is_believed(
        self, remote, root, tmp_path, monkeypatch
    ):
        """Else anybody could have every later pack told as an old one."""
        Packs(remote.directory, None).put("llama", SEEDS, number=10**9)
        with pytest.raises(BadPack):
            pulled(root)
        remote.put("llama", SEEDS, number=7)
        assert pulled(root).seen is None

    def test_a_dry_run_remembers_no_number(self, remote, root):
        remote.put("llama", SEEDS, number=7)
        make_ready(str(root), Trust())
        pulled(root, dry_run=True)
        assert pulled(root).seen is None

    def test_an_unsigned_pack_is_taken_of_a_directory_that_owners_vouch_for(
        self, remote, root, monkeypatch
    ):
        Packs(remote.directory, None).put("llama", SEEDS)
        monkeypatch.setenv("GPUCACHE_REMOTE", f"{remote.url}?trust=owner")
        assert len(pulled(root).unpacked.made) == 5

    def test_each_hostile_pack_is_refused_with_its_reason_and_nobody_waits_any_more(
        self, remote, root, tmp_path
    ):
        """Of hundreds: what is published was sound before the flaw, and is what the trusted key has signed."""
        make_ready(str(root), Trust())
        signed = {entry.store_key for entry in Parts(remote.signing).source.statement.entries}
        for case in cases(remote.signing, make_key("mallory", str(tmp_path / "m.key"))):
            remote.path("nightly").write_bytes(case.make())
            with pytest.raises(BadPack) as refused:
                with pulling(str(root), ("nightly",), "nightly", 1.0, pytest.fail) as held:
                    pulled(root, "nightly", pull=held)
            assert refused.value.code in (case.code, "another-name"), case.name
            assert str(refused.value).isprintable(), case.name
            assert pull_files(root) == [], case.name
        assert {path.name for path in root.glob("gpucache/v1/store/*/*")} <= signed
        assert not verify(str(root)).findings


class Paused:
    """A file of which no more than a part comes until that is allowed."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.file = path.open("rb")
        self.left = most_bytes
        self.waits, self.goes_on = threading.Event(), threading.Event()

    def read(self, size: int) -> bytes:
        if self.left == 0:
            self.waits.set()
            assert self.goes_on.wait(PATIENCE_S)
            self.left = 2**40
        data = self.file.read(min(size, self.left, 512))
        self.left -= len(data)
        return data


class TestThoseWhoWait:
    """The statement comes first: its keys are awaited, whatever the order in which ranks ask for them."""

    @pytest.fixture
    def slow(self, remote: Packs, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Paused]:
        """Let the pack come up to so many bytes."""

        def begin(most_bytes: int) -> Paused:
            paused = Paused(remote.path("llama"), most_bytes)
            monkeypatch.setattr(pulling_module, "Source", lambda file, *more: source(paused, *more))
            return paused

        source = pulling_module.Source
        return begin

    @pytest.mark.parametrize("order", [SEEDS, SEEDS[::-1]], ids=["in order", "from the end"])
    def test_all_launches_while_a_pack_comes_are_hits(self, order, remote, root, slow):
        """They begin before the statement is there."""
        remote.put("llama", SEEDS)
        paused = slow(0)
        make_ready(str(root), Trust())
        begun, results = threading.Event(), []

        def pull() -> None:
            with pulling(str(root), ("llama",), "llama", PATIENCE_S, print) as held:
                begun.set()
                pulled(root, pull=held)

        puller = threading.Thread(target=pull)
        puller.start()
        assert begun.wait(PATIENCE_S)
        assert paused.waits.wait(PATIENCE_S)
        ranks = [
            threading.Thread(target=lambda seed=seed: results.append(launched(*kernel(seed))[0]))
            for seed in order
        ]
        for rank in ranks:
            rank.start()
        paused.goes_on.set()
        for thread in (puller, *ranks):
            thread.join(PATIENCE_S)
        assert results == [True] * 5

    def test_the_file_goes_with_the_pull(self, remote, root):
        remote.put("llama", SEEDS)
        make_ready(str(root), Trust())
        with pulling(str(root), ("llama",), "llama", PATIENCE_S, print) as held:
            assert held is not None
            assert len(pull_files(root)) == 1
        assert pull_files(root) == []

    def test_whoever_begins_the_same_pull_waits_for_the_first(self, root):
        make_ready(str(root), Trust())
        first = Pull.begin(str(root), ("llama",), "llama")
        assert first is not None
        waits = threading.Event()
        held = []

        def second() -> None:
            with pulling(str(root), ("llama",), "llama", PATIENCE_S, lambda _: waits.set()) as own:
                held.append(own is not None)

        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(PATIENCE_S)
        assert held == []
        first.end()
        thread.join(PATIENCE_S)
        assert held == [True]

    def test_a_first_that_stands_still_is_waited_for_no_longer_than_the_limit(self, root):
        make_ready(str(root), Trust())
        first = Pull.begin(str(root), ("llama",), "llama")
        assert first is not None
        os.utime(first.path, (0, 0))
        with pulling(str(root), ("llama",), "llama", 1.0, pytest.fail) as own:
            assert own is None
        first.end()


class TestSingleEntries:
    def test_all_that_the_store_lacks_are_taken(self, singles, root):
        for seed in SEEDS:
            singles.add(*kernel(seed))
        launched(*kernel(SEEDS[0]))
        done = pulled_entries(root)
        assert len(done.made) == 4
        assert [name.store_key for name in done.there] == [kernel(SEEDS[0])[0]]
        assert hits(SEEDS) == 5

    def test_packs_and_what_is_no_entry_are_passed_over(self, remote, singles, root):
        remote.put("llama", SEEDS)
        singles.add(*kernel("one"))
        (remote.directory / "v1/3.9.0/XX").mkdir()
        (remote.directory / "v1/3.9.0/XX/readme.txt").write_text("hello")
        assert len(pulled_entries(root).made) == 1

    def test_only_those_of_one_triton(self, singles, root):
        singles.add(*kernel("one"))
        key, files = kernel("two")
        singles.put(key, singles.packed(key, files, version="3.6.0"), version="3.6.0")
        done = pulled_entries(root, triton_version="3.9.0")
        assert [entry.key for entry in done.made] == [kernel("one")[0]]

    def test_an_entry_under_another_key_is_refused_and_the_others_are_taken(self, singles, root):
        for seed in SEEDS:
            singles.add(*kernel(seed))
        wrong, right = kernel(SEEDS[1])[0], kernel(SEEDS[2])[0]
        singles.path(wrong).write_bytes(singles.path(right).read_bytes())
        done = pulled_entries(root)
        assert [one.name.store_key for one in done.refused] == [wrong]
        assert len(done.made) == 4
        assert singles.path(wrong).exists()

    def test_an_entry_of_another_triton_than_its_name_says_is_refused(self, singles, root):
        key, files = kernel("one")
        singles.put(key, singles.packed(key, files, version="3.6.0"))
        (refused,) = pulled_entries(root).refused
        assert refused.error.code == "another-name"

    def test_an_unsigned_entry_is_refused(self, singles, root):
        key, files = kernel("one")
        Entries(singles.directory, None).add(key, files)
        (refused,) = pulled_entries(root).refused
        assert refused.error.code == "unsigned"

    def test_a_dry_run_gets_none(self, singles, root):
        singles.add(*kernel("one"))
        done = pulled_entries(root, dry_run=True)
        assert len(done.missing) == 1
        assert done.received_bytes == 0
        assert not root.exists()

    def test_a_remote_that_fails_in_the_middle_ends_it_and_the_next_pull_goes_on(
        self, singles, root, monkeypatch
    ):
        from gpucache.remote.shared_directory import SharedDirectory

        for number in range(40):
            singles.add(*kernel(str(number)))
        get, asked = SharedDirectory.get, []

        def failing(self, name, limit_bytes):
            asked.append(name)
            if len(asked) > 20:
                raise RemoteError(self.shown, "server", "get", name)
            return get(self, name, limit_bytes)

        with monkeypatch.context() as patch:
            patch.setattr(SharedDirectory, "get", failing)
            with pytest.raises(RemoteError):
                pulled_entries(root)
        done = pulled_entries(root)
        assert 0 < len(done.there) <= 20
        assert len(done.made) + len(done.there) == 40

    def test_one_line_of_what_was_pulled_is_noted_for_all(self, singles, root):
        for seed in SEEDS:
            singles.add(*kernel(seed))
        pulled_entries(root)
        assert len(list(root.glob("gpucache/v1/pulled/*"))) == 1


class TestTheCommand:
    def test_what_it_says_of_a_pack(self, remote, root, gpucache):
        remote.put("llama", SEEDS, number=7)
        done = gpucache("pull", "llama")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("note: took 5 entries, ")
        again = gpucache("pull", "llama")
        assert "took 0 entries, 0 B; 5 there already" in again.stderr
        remote.put("llama", SEEDS, number=6)
        older = gpucache("pull", "llama")
        assert older.returncode == 0
        said = f"warning: {remote.url} has number 6 of llama, and number 7 was seen here: an older pack"
        assert said in older.stderr

    def test_its_json_of_a_pack_is_as_documented(self, remote, gpucache):
        remote.put("llama", SEEDS, number=7)
        said = told(gpucache("pull", "llama", "--json").stdout)
        (fields,), _ = documented("pull NAME")
        check(
            said,
            fields,
            remote=str,
            number=int,
            seen=type(None),
            signer=str,
            made_bytes=int,
            views=int,
            received_bytes=int,
        )
        assert len(said["made"]) == 5

    def test_that_a_remote_lists_more_than_is_looked_at_is_told(
        self, singles, monkeypatch, root, capsys
    ):
        for seed in SEEDS:
            singles.add(*kernel(seed))
        monkeypatch.setattr(pull_entries_module, "MOST_LISTED", 3)
        assert transfer_pull.pull.main([], standalone_mode=False) == 0
        said = capsys.readouterr().err
        assert "lists more than 3 objects" in said
        assert "took 3 entries of 3" in said
        monkeypatch.setattr(pull_entries_module, "MOST_LISTED", 5)
        assert transfer_pull.pull.main([], standalone_mode=False) == 0
        assert "warning" not in capsys.readouterr().err

    def test_its_json_of_single_entries_is_as_documented(self, singles, gpucache):
        for seed in SEEDS:
            singles.add(*kernel(seed))
        said = told(gpucache("pull", "--json").stdout)
        (fields,), inner = documented("pull")
        check(said, fields, remote=str, views=int, received_bytes=int)
        assert len(said["made"]) == len(said["missing"]) == 5
        assert list(said["missing"][0]) == inner["missing"]

    def test_a_refused_entry_is_an_error_beside_which_the_others_are_taken(self, singles, gpucache):
        singles.add(*kernel("one"))
        key, files = kernel("two")
        Entries(singles.directory, None).add(key, files)
        done = gpucache("pull")
        assert done.returncode == 1
        assert "nobody has signed it" in done.stderr
        assert "took 1 entry of 2" in done.stderr

    def test_an_arch_that_chooses_no_kernel_is_told_with_those_there_are(self, remote, gpucache):
        """Not only as ``took 0 entries``: in an init container it may be a slip."""
        remote.put("llama", SEEDS)
        done = gpucache("pull", "llama", "--arch", "sm_80")
        assert done.returncode == 0
        assert "warning: it has no kernel for that architecture, but for sm_90\n" in done.stderr
        assert "warning: it has" not in gpucache("pull", "llama", "--arch", "sm_90").stderr

    def test_arch_leaves_out_the_others(self, remote, gpucache):
        remote.put("llama", SEEDS)
        done = gpucache("pull", "llama", "--arch", "80")
        assert "took 0 entries, 0 B; 5 not chosen" in done.stderr

    def test_views_serve_stock_triton(self, remote, root, gpucache):
        remote.put("llama", SEEDS)
        fakes = {**os.environ, "GPUCACHE_FAKE_DEVICES": "2"}
        gpucache("provision", env=fakes)
        done = gpucache("pull", "llama", "--views", env=fakes)
        assert "10 views" in done.stderr
        for number in range(2):
            assert len(list((root / f"triton/{number}").iterdir())) == 5

    @pytest.mark.parametrize(
        ("words", "environ", "said"),
        [
            (["llama"], {"GPUCACHE_REMOTE": ""}, "error: no remote is named"),
            (["llama"], {"GPUCACHE_TRUST_KEYS": ""}, "error: nobody is trusted about what file://"),
            (["nothing"], {}, "has no v1/packs/nothing"),
            (["../x"], {}, "'../x' is no name of a pack"),
        ],
    )
    def test_what_cannot_be_is_an_error_with_a_way_out(
        self, words, environ, said, remote, gpucache
    ):
        remote.put("llama", SEEDS)
        done = gpucache("pull", *words, env={**os.environ, **environ})
        assert done.returncode == 1
        assert said in done.stderr
        assert "hint: " in done.stderr
        assert "Traceback" not in done.stderr

    def test_wrong_usage(self, remote, gpucache):
        assert gpucache("pull", "llama", "--triton-version", "3.9.0").returncode == 2
        assert gpucache("pull", "llama", "--arch", "h100").returncode == 2
        done = gpucache("pull", "--triton-version", "a/b")
        assert done.returncode == 2
        assert "--triton-version='a/b' is not a version of Triton" in done.stderr

    def test_it_waits_for_the_same_pull_of_another_process_and_says_so(
        self, remote, root, gpucache
    ):
        remote.put("llama", SEEDS)
        make_ready(str(root), Trust())
        code = """
import sys
from gpucache.remote.pulls import Pull
pull = Pull.begin(sys.argv[1], [sys.argv[2], "pack", "llama", ""], "the pull of llama")
print("held", flush=True)
sys.stdin.readline()
"""
        environ = {**os.environ, STALL_TIMEOUT.name: "1"}
        with running(code, str(root), remote.url) as other:
            done = gpucache("pull", "llama", env=environ)
            assert f"note: waiting for process {other.pid} on " in done.stderr
            assert "took 5 entries" in done.stderr


def test_a_bar_shows_how_far_a_pull_is(remote, root):
    """On a terminal, once the pull takes more than a second; here after no time at all."""
    remote.put("llama", SEEDS)
    at_once = (
        "import gpucache.cli.terminal as terminal; terminal._PATIENCE_S = terminal._DRAWN_S = 0"
    )
    env = {**os.environ, "TERM": "xterm"}
    code, seen = on_a_terminal("pull", "llama", env=env, before=at_once)
    assert code == 0
    assert "pulling" in seen
    assert "100%" in seen
    assert "took 5 entries" in seen


class TestTime:
    @pytest.fixture
    def source(self, remote: Packs, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Source]:
        """An object of which so many bytes come in each second."""
        now = [1000.0]
        monkeypatch.setattr(source_module.time, "monotonic", lambda: now[0])

        class Slow:
            def __init__(self, size: int) -> None:
                self.size = size

            def read(self, size: int) -> bytes:
                now[0] += 1.0
                return bytes(self.size)

        opened = open_remote(RemoteUrl.parse(remote.url), {})
        return lambda size: Source(Slow(size), opened, "v1/packs/llama")

    def test_a_remote_that_drips_is_given_up_after_a_minute(self, source):
        dripping = source(10)
        for _ in range(60):
            dripping.read(65536)
        with pytest.raises(RemoteError) as slow:
            dripping.read(65536)
        assert slow.value.kind == "timeout"
        assert "v1/packs/llama" in slow.value.problem

    def test_one_that_gives_a_little_more_is_not(self, source):
        slow = source(1024)
        for _ in range(1000):
            slow.read(65536)
