from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.processes import PATIENCE_S, SPAWN

from gpucache.disk import node, staging
from gpucache.disk.files import STALE_S, write_new
from gpucache.disk.node import node_id
from gpucache.disk.staging import Staging, sweep_dead

Mount = Callable[..., Path]


def anywhere(_: str) -> bool:
    return True


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def owned(place: Path) -> list[Path]:
    """The processes' directories in a place."""
    return sorted(place.glob("gpucache-*"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "tmp"


OWNER = """
import sys
from gpucache.disk.staging import Staging
print(Staging(sys.argv[1]).directory(), flush=True)
sys.stdin.read()
"""

PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

WORKER = """
import multiprocessing, os, sys
from gpucache.disk.staging import Staging
parents = Staging(sys.argv[1]).directory()

def work():
    Staging(sys.argv[1]).directory()

if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=work)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    print(os.listdir(sys.argv[1]) == [os.path.basename(os.path.dirname(parents))])
"""

FORKING = """
import os, sys
from gpucache.disk.staging import Staging, sweep_dead
place, how = sys.argv[1:]
staging = Staging(place)
mine = staging.directory()
child = os.fork()
if child == 0:
    own = staging.directory()
    assert os.path.dirname(own) != os.path.dirname(mine)
    assert sweep_dead(place) == 0
    if how == "exits":
        sys.exit()
    print(mine, flush=True)
    sys.stdin.read()
    os._exit(0)
if how == "exits":
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(place) == [os.path.basename(os.path.dirname(mine))]
    print(mine, flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(
    place: Path, code: str = OWNER, *args: str
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process and its directory; it is killed in the end."""
    command = [sys.executable, "-c", code, str(place), *args]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def _make_and_keep(place: str, rounds: int) -> None:
    for _ in range(rounds):
        assert os.path.isdir(Staging(place).directory())
    assert all(os.path.isdir(path) for each in staging._all for path, _ in each._made.values())


class TestDirectory:
    def test_each_is_new_empty_and_ours_alone(self, place):
        ours = Staging(str(place))
        found = [Path(ours.directory()) for _ in range(3)]
        assert len(set(found)) == 3
        assert [list(each.iterdir()) for each in found] == [[], [], []]
        assert {each.stat().st_mode & 0o777 for each in (*found, found[0].parent)} == {0o700}
        assert [found[0].parent] == owned(place)

    def test_threads_get_their_own(self, place):
        ours, found = Staging(str(place)), []
        threads = [
            threading.Thread(target=lambda: found.extend([ours.directory() for _ in range(25)]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(set(found)) == 200
        assert len(owned(place)) == 1

    def test_it_is_locked_as_long_as_its_process_lives(self, place):
        with owner(place) as (process, directory):
            fd = os.open(directory.parent, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process.kill()
            process.wait(PATIENCE_S)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)

    def test_one_that_was_removed_under_the_process_is_made_again(self, place):
        ours = Staging(str(place))
        ours.directory()
        before = open_files()
        for _ in range(3):
            shutil.rmtree(place)
            assert os.path.isdir(ours.directory())
        assert open_files() == before
        assert sweep_dead(str(place)) == 0

    def test_a_preferred_place_that_cannot_be_made_is_an_os_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            Staging(str(tmp_path / "file" / "tmp")).directory()

    def test_a_place_that_is_named_like_one_of_ours_will_do(self, tmp_path):
        ours = Staging(str(tmp_path / "gpucache-new-0"))
        assert Path(ours.directory()).parent.name.startswith("gpucache-staging-")

    def test_a_place_that_may_not_be_listed_will_do(self, place, monkeypatch):
        def refuse(_: str) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "scandir", refuse)
        assert os.path.isdir(Staging(str(place)).directory())

    def test_a_process_removes_its_own_at_exit_and_nothing_else(self, place, python):
        with owner(place) as (_, directory):
            ended = python(
                "import sys; from gpucache.disk.staging import Staging; Staging(sys.argv[1]).directory()",
                place,
            )
            assert ended.returncode == 0, ended.stderr
            assert owned(place) == [directory.parent]

    def test_what_cannot_be_locked_is_left_to_no_descriptor(self, place, monkeypatch):
        """A directory that could not get its name is an error, each time."""

        def refuse(*_: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        ours, before = Staging(str(place)), open_files()
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            for _ in range(3):
                with pytest.raises(OSError, match="No space"):
                    ours.directory()
        assert open_files() == before
        assert owned(place) == []


class TestSweep:
    def test_those_of_the_dead_go_and_those_of_the_living_stay(self, place):
        with owner(place) as (dying, dead), owner(place) as (_, alive):
            (dead / "K.cubin").write_bytes(b"half")
            assert sweep_dead(str(place)) == 0
            dying.kill()
            dying.wait(PATIENCE_S)
            assert sweep_dead(str(place)) == 1
            assert owned(place) == [alive.parent]

    def test_the_next_process_sweeps(self, place):
        with owner(place) as (dying, dead):
            dying.kill()
            dying.wait(PATIENCE_S)
        ours = Path(Staging(str(place)).directory())
        assert owned(place) == [ours.parent]
        assert not dead.exists()

    def test_the_next_process_sweeps_also_where_it_does_not_stage(
        self, place, tmp_path, monkeypatch
    ):
        """A process whose root was refused stages in memory; the next one's root may be fine."""
        memory = tmp_path / "memory"
        memory.mkdir()
        with subprocess.Popen([sys.executable, "-c", OWNER, memory], **PIPES) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
        assert len(owned(memory)) == 1
        monkeypatch.setattr(staging, "_candidates", lambda preferred: [preferred, str(memory)])
        Staging(str(place)).directory()
        assert owned(memory) == []

    def test_where_flock_does_not_work_they_go_after_a_day(self, place, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        place.mkdir()
        for hours, name in ((23, "young"), (25, "old")):
            made = place / f"gpucache-staging-{node_id()}.{name}"
            made.mkdir()
            os.utime(made, (time.time() - hours * 3600,) * 2)
        assert sweep_dead(str(place)) == 1
        assert [path.name for path in owned(place)] == [f"gpucache-staging-{node_id()}.young"]

    @pytest.mark.parametrize("link", [False, True])
    def test_what_comes_into_the_place_of_a_dead_one_meanwhile_is_not_touched(
        self, place, tmp_path, monkeypatch, link
    ):
        """Where everybody may rename what is another's, he can lead a sweep by path elsewhere."""
        dead = place / f"gpucache-staging-{node_id()}.dead"
        (dead / "1").mkdir(parents=True)
        (dead / "1" / "file").touch()
        (tmp_path / "mine" / "1").mkdir(parents=True)
        (tmp_path / "mine" / "1" / "file").touch()
        is_dead = staging._is_dead

        def swapping(name: str, fd: int) -> bool:
            answer = is_dead(name, fd)
            dead.rename(tmp_path / "moved")
            if link:
                dead.symlink_to(tmp_path / "mine")
            else:
                (tmp_path / "mine").rename(dead)
            return answer

        monkeypatch.setattr(staging, "_is_dead", swapping)
        sweep_dead(str(place))
        assert (dead / "1" / "file").exists()
        assert list((tmp_path / "moved").iterdir()) == []

    def test_a_new_one_is_left_until_it_is_old(self, place):
        """Between its making and its locking it looks dead."""
        new = place / f"gpucache-new-{node_id()}.abc"
        new.mkdir(parents=True)
        assert sweep_dead(str(place)) == 0
        long_ago = time.time() - 2 * STALE_S
        os.utime(new, (long_ago, long_ago))
        assert sweep_dead(str(place)) == 1
        assert owned(place) == []

    @pytest.mark.root
    def test_another_users_stay(self, place, as_root):
        theirs = place / "gpucache-staging-theirs"
        theirs.mkdir(parents=True)
        os.chown(theirs, 65534, 65534)
        assert sweep_dead(str(place)) == 0
        assert theirs.exists()

    def test_nothing_but_directories_of_ours_is_looked_at(self, place, tmp_path, python):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        place.mkdir()
        (place / "torchinductor_root").mkdir()
        (place / "gpucache-staging-link").symlink_to(elsewhere)
        (place / "gpucache-staging-file").write_text("")
        os.mkfifo(place / "gpucache-staging-fifo")  # to open it would wait for a writer
        swept = python(
            "import sys; from gpucache.disk.staging import sweep_dead; print(sweep_dead(sys.argv[1]))",
            place,
        )
        assert swept.stdout == "0\n", swept.stderr
        assert len(list(place.iterdir())) == 4
        assert elsewhere.exists()

    def test_processes_that_make_and_sweep_at_once_keep_what_is_theirs(self, place):
        workers = [SPAWN.Process(target=_make_and_keep, args=(str(place), 40)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert owned(place) == []


class TestFork:
    def test_the_child_has_its_own_and_its_exit_leaves_its_parents(self, place):
        with owner(place, FORKING, "exits") as (_, directory):
            assert sweep_dead(str(place)) == 0
            assert owned(place) == [directory.parent]
            assert directory.is_dir()

    def test_a_child_that_lives_on_does_not_keep_a_killed_parents(self, place):
        with owner(place, FORKING, "stays") as (process, directory):
            assert len(owned(place)) == 2
            process.kill()
            process.wait(PATIENCE_S)
            assert sweep_dead(str(place)) == 1
            assert not directory.exists()
            assert len(owned(place)) == 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_process_removes_its_own_at_its_end(place, tmp_path, python, method):
    """As torch and a DataLoader start them; a forked one runs nothing of `atexit`."""
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    done = subprocess.run(
        [sys.executable, script, place, method], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


class TestWrite:
    def test_the_preferred_place_comes_first(self, place):
        path = Path(Staging(str(place)).write("K.json", b"{}", anywhere))
        assert path.read_bytes() == b"{}"
        assert path.name == "K.json"
        assert path.parent.parent in owned(place)

    def test_a_second_file_of_the_same_name_is_another_file(self, place):
        ours = Staging(str(place))
        first, second = ours.write("K.json", b"1", anywhere), ours.write("K.json", b"2", anywhere)
        assert (Path(first).read_bytes(), Path(second).read_bytes()) == (b"1", b"2")

    def test_a_place_that_is_refused_is_passed_over(self, place, guard):
        path = Staging(str(place)).write("K.so", b"elf", lambda where: where != str(place))
        assert path.startswith(f"{tempfile.gettempdir()}/gpucache-staging-")
        assert not place.exists()

    def test_a_place_in_which_everybody_may_replace_it_is_passed_over(
        self, place, tmp_path, monkeypatch
    ):
        """Triton executes what it reads there."""
        opened = tmp_path / "open"
        opened.mkdir()
        opened.chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", str(opened))
        path = Staging(str(place)).write("add.cubin", b"x", lambda where: where != str(place))
        assert not path.startswith(str(opened))
        opened.chmod(0o1777)
        path = Staging(str(place)).write("add.cubin", b"x", lambda where: where != str(place))
        assert path.startswith(str(opened))

    def test_nowhere_is_an_os_error_that_names_all_places(self, place):
        with pytest.raises(OSError) as raised:
            Staging(str(place)).write("K.so", b"elf", lambda _: False)
        places = ", ".join(
            f"{each} (mounted noexec)"
            for each in (place, tempfile.gettempdir(), "/dev/shm", "/var/tmp")
        )
        assert raised.value.strerror == f"K.so of 3 bytes can be written nowhere: {places}"

    def test_the_message_says_why_the_preferred_place_failed(self, tmp_path):
        (tmp_path / "file").write_text("")
        preferred = str(tmp_path / "file" / "tmp")
        with pytest.raises(
            OSError, match=f"Not a directory.*{tempfile.gettempdir()} .mounted noexec"
        ):
            Staging(preferred).write("K.so", b"elf", lambda where: where == preferred)

    def test_no_temporary_directory_is_one_place_less(self, place, monkeypatch):
        """`tempfile` finds none where all of its candidates are full."""

        def none() -> str:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

        monkeypatch.setattr(tempfile, "gettempdir", none)
        assert Path(Staging(str(place)).write("K.json", b"{}", anywhere)).read_bytes() == b"{}"

    @pytest.mark.root
    def test_a_full_disk_falls_through_to_the_next_place_and_keeps_no_part(self, place, mount):
        mount(place, "-t", "tmpfs", "-o", "size=64k,mode=0700", "none")
        ours, data = Staging(str(place)), os.urandom(1 << 20)
        path = ours.write("K.cubin", data, anywhere)
        assert path.startswith(f"{tempfile.gettempdir()}/")
        assert Path(path).read_bytes() == data
        assert [list(each.iterdir()) for each in owned(place)] == [[]]
        assert ours.write("K.json", b"{}", anywhere).startswith(str(place)), (
            "what fits still goes to the first"
        )

    @pytest.mark.root
    def test_a_file_that_does_not_fit_is_not_left(self, place, mount):
        mount(place, "-t", "tmpfs", "-o", "size=64k,mode=0700", "none")
        with pytest.raises(OSError, match="No space left") as raised:
            write_new(str(place / "K.cubin"), bytes(1 << 20))
        assert raised.value.errno == errno.ENOSPC
        assert list(place.iterdir()) == []

    @pytest.mark.root
    def test_a_read_only_place_falls_through(self, place, mount):
        mount(place, "-t", "tmpfs", "-o", "ro,size=64k,mode=0700", "none")
        assert (
            Staging(str(place))
            .write("K.json", b"{}", anywhere)
            .startswith(f"{tempfile.gettempdir()}/")
        )

    def test_a_preferred_place_removed_meanwhile_is_made_again(self, place):
        ours = Staging(str(place))
        ours.write("K.json", b"1", anywhere)
        shutil.rmtree(place)
        assert ours.write("K.json", b"2", anywhere).startswith(str(place))


SIGNALLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from support.writers import put_kernel
from support.trees import KERNEL
import gpucache

from gpucache.store import key_lock

# The thread that shows that a compile lives looks at all frames: a manager that a frame returns from meanwhile ends in
# that thread, which removes what was staged beside this test's own look at it. So it sleeps for as long as this runs.
key_lock._BEAT_S = 3600.0
root = os.environ["GPUCACHE_DIR"]
package = os.path.dirname(gpucache.__file__)
names = iter(range(10**6))

def key():
    return f"{next(names):052d}".translate(str.maketrans("0123456789", "ABCDEFGHIJ"))

def handler(*_):
    whole(put_kernel(key()))

def whole(group):
    for name, path in group.items():
        with open(path, "rb") as file:
            assert file.read() == KERNEL[name], path

signal.signal(signal.SIGUSR1, handler)
seen = 0

def counting(at):
    def trace(frame, event, argument):
        global seen
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            seen += 1
            if seen == at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGUSR1)
        return trace
    return trace

def put(at):
    global seen
    seen = 0
    sys.settrace(counting(at))
    try:
        group = put_kernel(key())
    finally:
        sys.settrace(None)
    whole(group)
    return seen

put_kernel(key())
lines = put(-1)
for at in range(1, lines + 1):
    put(at)
    if at % 10 == 0:  # where nothing is staged yet, too: as a cleaner leaves it
        import shutil
        shutil.rmtree(root + "/gpucache/v1/tmp")
        put(at)
print(lines)
"""


def test_a_signal_handler_may_launch_a_kernel_at_every_line_of_a_compile(tmp_path, python):
    """No lock of ours is waited for by the thread that holds it."""
    env = {
        **os.environ,
        "GPUCACHE_DIR": str(tmp_path / "root"),
        "TRITON_CACHE_DIR": str(tmp_path / "root/triton/0"),
        "GPUCACHE_MAX_SIZE": "0",
    }
    done = python(SIGNALLED, Path(__file__).parent, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    assert "Traceback" not in done.stderr


def test_a_path_that_cannot_be_looked_up_for_a_moment_gives_nothing_staged_up(place, monkeypatch):
    """A stale handle, an interrupted mount: the descriptor knows better."""
    ours = Staging(str(place))
    staged = Path(ours.directory())
    (staged / "library.so").write_bytes(b"library")
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    again = Path(ours.directory())
    assert again.parent == staged.parent
    assert (staged / "library.so").read_bytes() == b"library"


def test_what_a_signal_handler_stages_as_a_place_is_found_gone_stays(place, monkeypatch):
    ours = Staging(str(place))
    shutil.rmtree(Path(ours.directory()).parent)
    was_gone = staging._is_gone
    handled: list[str] = []

    def gone_and_a_signal_comes(fd: int) -> bool:
        answer = was_gone(fd)
        monkeypatch.setattr(staging, "_is_gone", was_gone)
        handled.append(ours.directory())
        return answer

    monkeypatch.setattr(staging, "_is_gone", gone_and_a_signal_comes)
    outer = ours.directory()
    (of_handler,) = handled
    sweep_dead(str(place))
    assert os.path.isdir(of_handler)
    assert os.path.isdir(outer)


class TestAnotherNode:
    """On a mount that nodes share, a lock of another node's process may look free from here."""

    @pytest.mark.parametrize(
        "name", ["staging-0badcafe.abcdefgh", "new-0badcafe.abcdefgh", "staging-abcdefgh"]
    )
    def test_what_it_stages_is_left_for_a_day_although_no_lock_is_seen(self, place, name):
        theirs = place / f"gpucache-{name}"
        (theirs / "1").mkdir(parents=True)
        now = time.time()
        for age_s, swept in ((0.0, 0), (86000.0, 0), (87000.0, 1)):
            os.utime(theirs, (now - age_s, now - age_s))
            assert sweep_dead(str(place)) == swept
        assert not theirs.exists()

    def test_this_nodes_own_names_say_so(self, place):
        ours = Path(Staging(str(place)).directory()).parent
        assert ours.name.startswith(f"gpucache-staging-{node_id()}.")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        assert node_id() == boot[:8]

    def test_containers_of_one_node_agree_whatever_their_host_names(self, python):
        done = python("from gpucache.disk.node import node_id; print(node_id())")
        assert done.stdout == f"{node_id()}\n"

    def test_without_a_boot_id_the_host_tells(self, monkeypatch, tmp_path):
        monkeypatch.setattr(node, "BOOT_ID", str(tmp_path / "absent"))
        monkeypatch.setattr(node, "_known", None)
        assert int(node_id(), 16) >= 0
        assert len(node_id()) == 8
