from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.recipes import recipe_file
from support.users import ADA

from gpucache.disk.node import DAY_S, node_id
from gpucache.disk.processes import pid_namespace, process_of
from gpucache.disk.vetting import Trust
from gpucache.warm.ahead.recordings import MOST_FILES, begin, bound, last, recordings

TRUST = Trust()
COMMAND, OTHER = "0" * 16, "1" * 16


@pytest.fixture
def directory(root) -> Path:
    made = root / "gpucache/v1/recipes"
    made.mkdir(parents=True, mode=0o700)
    return made


def run_of(
    directory: Path,
    number: int,
    count: int,
    *,
    command: str = COMMAND,
    node: str | None = None,
    age_s: float = 0.0,
) -> Path:
    """What an ended run has left: so many recipes, so long ago."""
    name = f"{command}.{node or node_id()}.{pid_namespace()}.{number}.1.recipes"
    if count:
        recipe_file(directory / name, count)
    else:
        (directory / name).touch(0o600)
    (directory / name).chmod(0o600)
    then = time.time() - age_s
    os.utime(directory / name, (then, then))
    return directory / name


def chosen(root: Path) -> list[str]:
    return [os.path.basename(path) for path in last(recordings(str(root), COMMAND, TRUST))]


def started(root: Path, command: str = COMMAND) -> str | None:
    return begin(str(root), command, TRUST)


class TestWhatCounts:
    def test_nothing_where_nothing_was_recorded(self, root):
        assert chosen(root) == []

    def test_the_last_run(self, directory, root):
        run_of(directory, 1, 5, age_s=50)
        new = run_of(directory, 2, 4, age_s=10)
        run_of(directory, 3, 9, command=OTHER)
        assert chosen(root) == [new.name]

    def test_a_run_that_died_before_its_first_kernel_does_not(self, directory, root):
        old = run_of(directory, 1, 5, age_s=50)
        run_of(directory, 2, 0)
        assert chosen(root) == [old.name]

    def test_beside_a_run_that_died_early_the_longest_counts_too(self, directory, root):
        """Also if many have died one after the other."""
        whole = run_of(directory, 1, 20, age_s=50)
        run_of(directory, 2, 3, age_s=30)
        run_of(directory, 3, 4, age_s=20)
        early = run_of(directory, 4, 2)
        assert chosen(root) == [early.name, whole.name]

    def test_what_another_node_has_left(self, directory, root):
        run_of(directory, 1, 5, age_s=50)
        theirs = run_of(directory, 2, 5, node="0badcafe", age_s=10)
        assert chosen(root) == [theirs.name]

    @pytest.mark.parametrize("harm", ["link", "pipe", "directory", "open to all"])
    def test_not_what_anybody_may_have_planted(self, harm, directory, root, tmp_path):
        old = run_of(directory, 1, 5, age_s=50)
        planted = run_of(directory, 2, 5)
        if harm == "open to all":
            planted.chmod(0o666)
        elif harm == "link":
            planted.rename(tmp_path / "elsewhere")
            planted.symlink_to(tmp_path / "elsewhere")
        else:
            planted.unlink()
            planted.mkdir() if harm == "directory" else os.mkfifo(planted)
        assert chosen(root) == [old.name]

    def test_not_what_another_user_has_made(self, as_root, directory, root):
        os.chown(run_of(directory, 1, 5), ADA, ADA)
        assert chosen(root) == []

    @pytest.mark.parametrize(
        "name", ["", ".recipes", f"{COMMAND}.x.recipes", f"{COMMAND}\n.recipes", "é" * 60]
    )
    def test_not_what_has_another_name(self, name, directory, root):
        recipe_file(directory / f"{name}x", 3)
        assert chosen(root) == []


class TestANewOne:
    def test_names_its_writer_and_is_private(self, root):
        root.mkdir(mode=0o700)
        path = Path(started(root))
        pid, start = process_of(os.getpid())
        assert path.name.endswith(f".{pid}.{start}.recipes")
        assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 0)

    def test_there_is_one_writer_of_a_command_on_a_node(self, root):
        """While it runs; then the next run records."""
        root.mkdir(mode=0o700)
        code = "import sys; from gpucache.warm.ahead.recordings import begin; from gpucache.disk.vetting import Trust; "
        code += f"print(begin({str(root)!r}, {COMMAND!r}, Trust()), flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", code]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout.readline() != "None\n"
            assert started(root) is None
            assert started(root, OTHER) is not None
            writer.kill()
            writer.wait()
            assert started(root) is not None

    def test_removes_what_no_later_run_would_take(self, directory, root):
        whole = run_of(directory, 1, 20, age_s=50)
        run_of(directory, 2, 3, age_s=30)
        early = run_of(directory, 3, 2, age_s=20)
        run_of(directory, 4, 0, age_s=10)
        other = run_of(directory, 5, 1, command=OTHER)
        begun = Path(started(root))
        assert set(directory.iterdir()) == {whole, early, other, begun}

    def test_leaves_what_another_node_may_still_write(self, directory, root):
        theirs = run_of(directory, 1, 0, node="0badcafe")
        gone = run_of(directory, 2, 0, node="0badcafe", age_s=DAY_S + 60)
        started(root)
        assert theirs.exists()
        assert not gone.exists()

    def test_there_are_twenty_files_and_the_oldest_go(self, directory, root):
        for number in range(30):
            run_of(directory, number + 1, 1, command=f"{number:016x}", age_s=1000 - number)
        (directory / f"{OTHER}.keys").touch()
        started(root, "f" * 16)
        left = list(directory.iterdir())
        assert len(left) == MOST_FILES
        assert directory / f"{OTHER}.keys" in left
        assert not any(path.name.startswith(f"{11:016x}") for path in left)
        assert any(path.name.startswith(f"{12:016x}") for path in left)

    def test_strange_names_links_and_what_others_own_are_not_touched(
        self, as_root, directory, root, tmp_path
    ):
        (tmp_path / "elsewhere").touch()
        kept = [directory / "notes.txt", directory / f"{COMMAND}.keys.old", directory / "\udcff"]
        for path in kept:
            path.touch()
        link = directory / f"{COMMAND}.keys"
        link.symlink_to(tmp_path / "elsewhere")
        theirs = run_of(directory, 1, 1, command=OTHER, age_s=5000)
        os.chown(theirs, ADA, ADA)
        for number in range(30):
            run_of(directory, number + 1, 1, command=f"{number:016x}", age_s=1000)
        bound(str(root))
        assert all(os.path.lexists(path) for path in [*kept, link, theirs])
        assert (tmp_path / "elsewhere").exists()

    def test_commands_count_it_find_nothing_wrong_and_leave_it(self, directory, root, here):
        kept = run_of(directory, 1, 3)
        words = ("--root", root)
        (row,) = (row for row in here("du", *words).rows if row[0] == "gpucache")
        assert int(row[2]) == kept.stat().st_size
        assert here("verify", *words) == (
            0,
            "",
            f"note: 0 entries checked in {root}, 0 findings\n",
        )
        assert here("clean", "--yes", *words).code == 0
        assert here("prune", "--max-size", "0", "--yes", *words).code == 0
        assert kept.exists()

    def test_a_link_in_the_place_of_the_directory_is_refused(self, root, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (root / "gpucache/v1").mkdir(parents=True, mode=0o700)
        (root / "gpucache/v1/recipes").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError):
            started(root)
        assert list((tmp_path / "elsewhere").iterdir()) == []
