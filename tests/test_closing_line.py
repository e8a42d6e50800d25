"""The line that a run ends with: what it tells, which process says it, and that it never hurts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, python_path
from support.terminals import seen_of

from gpucache.store.stats import Stats
from gpucache.triton.closing_line import closing_line

TESTS = Path(__file__).parent
KERNELS = TESTS / "support/kernels.py"
LAUNCH = "from support.launches import kernel, launched\n"
ONE = f"{LAUNCH}launched(*kernel('a'))\n"
ALONE = "gpucache: 1 compiled here, 0 taken from the store\n"


@pytest.fixture
def environ(root, monkeypatch) -> dict[str, str]:
    """The environment of a rank that caches in a new root."""
    monkeypatch.setenv("PYTHONPATH", python_path(TESTS))
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    return dict(os.environ)


def seen(code: str, **env: str) -> str:
    return seen_of([sys.executable, "-c", code], env=env)


# ---- what it tells


@pytest.mark.parametrize(
    ("values", "in_ranks", "not_shared", "line"),
    [
        (
            {"misses": 12, "shared_hits": 84, "saved_s": 41.2},
            True,
            None,
            "12 compiled here, 84 taken from other ranks, 41 s of compiling saved",
        ),
        (
            {"hits": 30, "shared_hits": 9, "fallback_hits": 2, "remote_hits": 4, "saved_s": 0.4},
            False,
            None,
            "0 compiled here, 3 taken from the store, 2 from the fallback, 4 from the remote, "
            "30 found in its own directory",
        ),
        (
            {"misses": 3, "errors_degraded": 2},
            False,
            None,
            "3 compiled here, 0 taken from the store, "
            "alone after 2 failures (`gpucache doctor` looks for the cause)",
        ),
        ({}, True, "GPUCACHE_SHARE=0", "nothing shared: GPUCACHE_SHARE=0"),
    ],
)
def test_it_names_each_level_that_gave_something(values, in_ranks, not_shared, line):
    assert closing_line(values, in_ranks, not_shared) == f"gpucache: {line}"


def test_a_process_without_kernels_has_nothing_to_tell():
    assert closing_line({"saved_s": 0.0}, True, None) is None


def test_what_was_left_to_be_folded_is_told_too(root):
    """As at the end of an hour, when a process begins another file."""
    stats = Stats(str(root / "gpucache/v1/stats"), "0")
    stats.add("misses", 2, now=True)
    assert stats.leave()
    stats.add("misses", 3)
    stats.add("hits")
    assert stats.of_process == {"misses": 5, "hits": 1}


# ---- who says it


@pytest.mark.usefixtures("environ")
class TestWho:
    def test_the_only_process(self):
        assert seen(ONE) == ALONE

    def test_of_ranks_the_first_one_and_for_itself(self, root):
        launcher = (
            "import os, subprocess, sys\n"
            "for rank in '1', '0':\n"
            f"    own = {{'LOCAL_RANK': rank, 'TRITON_CACHE_DIR': '{root}/triton/' + rank}}\n"
            "    subprocess.run([sys.executable, '-c', sys.argv[1]], env={**os.environ, **own})\n"
        )
        of_rank = f"{ONE}import os\nif os.environ['LOCAL_RANK'] == '0': launched(*kernel('b'))\n"
        line = "gpucache: 1 compiled here, 1 taken from other ranks\n"
        assert seen_of([sys.executable, "-c", launcher, of_rank]) == line

    def test_a_rank_that_is_alone_has_taken_nothing_from_other_ranks(self):
        assert seen(ONE, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1") == ALONE

    def test_nobody_where_stderr_is_no_terminal(self):
        done = subprocess.run(
            [sys.executable, "-c", ONE], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_nobody_where_each_line_is_to_be_json(self):
        assert seen(ONE, GPUCACHE_LOG_FORMAT="json") == ""

    def test_nobody_who_has_asked_for_silence(self):
        assert seen(ONE, GPUCACHE_SUMMARY="0") == ""

    @pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
    def test_nobody_who_ends_without_an_end(self, end):
        assert seen(f"{ONE}import os\n{end}") == ""

    def test_a_fork_does_not_say_its_parents_line(self):
        quiet = "import warnings\nwarnings.simplefilter('ignore')\n"  # of a fork beside threads, since Python 3.12
        code = f"import os, sys\n{quiet}{ONE}child = os.fork()\nif child: os.waitpid(child, 0)\n"
        assert seen(code) == ALONE

    def test_nor_a_line_of_its_own(self):
        code = (
            "import os, sys\nchild = os.fork()\nif child:\n    os.waitpid(child, 0)\n"
            "    sys.exit()\n"
        )
        assert seen(code + ONE) == ""

    @pytest.mark.parametrize("how", ["spawn", "fork", "forkserver"])
    def test_nor_a_process_of_multiprocessing(self, how, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(
            f"{LAUNCH}import multiprocessing\n"
            "def work(): launched(*kernel('a'))\n"
            "if __name__ == '__main__':\n"
            f"    child = multiprocessing.get_context('{how}').Process(target=work)\n"
            "    child.start(); child.join(); print(child.exitcode)\n"
        )
        assert seen_of([sys.executable, str(program)]) == "0\n"

    def test_nor_a_daemon_whose_parent_has_gone(self):
        code = (
            "import os, sys\nreadable, writable = os.pipe()\nif os.fork():\n"
            "    os.close(writable); os.read(readable, 1); os._exit(0)\n"
            "os.setsid()\nif os.fork(): os._exit(0)\n"
        )
        assert seen(code + ONE) == ""

    def test_but_a_program_does_that_another_one_has_started_with_the_same_words(self):
        """As a server that reloads itself starts its own command line once more."""
        code = (
            "import os, subprocess, sys\n"
            "if 'AGAIN' not in os.environ:\n"
            "    again = subprocess.run(sys.orig_argv, env={**os.environ, 'AGAIN': '1'})\n"
            "    sys.exit(again.returncode)\n"
        )
        assert seen(code + ONE) == ALONE

    @pytest.mark.parametrize("path", ["compile_worker/__main__.py", "__autotune_main__.py"])
    def test_nor_a_process_of_torchs_that_compiles(self, path, tmp_path):
        program = tmp_path / "torch/_inductor" / path
        program.parent.mkdir(parents=True)
        program.write_text(ONE)
        assert seen_of([sys.executable, str(program)]) == ""


# ---- why nothing was shared


@pytest.mark.usefixtures("environ", "triton")
class TestNothingShared:
    TRITONS = f"import triton.runtime.cache\n{ONE}"

    def test_by_a_setting(self):
        line = "gpucache: nothing shared: GPUCACHE_SHARE=0\n"
        assert seen(self.TRITONS, GPUCACHE_SHARE="0") == line

    def test_in_a_directory_that_is_fresh_on_purpose(self, tmp_path):
        fresh = tmp_path / "tmpab12cd34"
        line = f"nothing shared: {fresh} is fresh on purpose (GPUCACHE_SHARE=1 shares it)"
        assert line in seen(self.TRITONS, TRITON_CACHE_DIR=str(fresh))

    def test_in_an_unsafe_root(self, tmp_path):
        unsafe = tmp_path / "unsafe"
        unsafe.mkdir()
        unsafe.chmod(0o777)
        said = seen(ONE, GPUCACHE_DIR=str(unsafe), TRITON_CACHE_DIR=f"{unsafe}/triton/0")
        told = f"nothing shared: {unsafe} cannot be used (`gpucache doctor` tells why)"
        assert said.splitlines()[-1] == f"gpucache: 1 compiled here, 0 taken from the store, {told}"

    def test_where_gpucache_is_disabled_it_has_nothing_to_say(self):
        assert seen(self.TRITONS, GPUCACHE_DISABLE="1") == ""


# ---- that it never hurts


STOPPED = "import termios; termios.tcflow(2, termios.TCOOFF)"
"""As by ctrl-S: nothing that is written comes through."""


@pytest.mark.parametrize(
    "harm",
    [
        *("sys.stderr.close()", "os.close(2)", "sys.stderr = None", "del sys.argv", "os.close(1)"),
        *(STOPPED, f"os.set_blocking(2, False); {STOPPED}"),
    ],
)
@pytest.mark.usefixtures("environ")
def test_a_program_that_has_closed_its_stderr_ends_as_it_did(harm, tmp_path):
    """Its exit code is written by a shell around it, to a file."""
    code = f"{ONE}import os, sys\n{harm}\n"
    script = '"$0" -c "$1"; echo $? > "$2"'
    said = seen_of(["sh", "-c", script, sys.executable, code, str(tmp_path / "code")])
    assert "Traceback" not in said
    assert "Exception" not in said
    assert (tmp_path / "code").read_text() == "0\n"


@pytest.mark.usefixtures("environ")
def test_a_program_in_the_background_is_not_stopped_at_its_end():
    """As the terminal's setting ``tostop`` stops whoever writes there from the background."""
    launcher = (
        "import fcntl, os, sys, termios\n"
        "os.setsid()\n"
        "fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n"
        "mode = termios.tcgetattr(2)\n"
        "mode[3] |= termios.TOSTOP\n"
        "termios.tcsetattr(2, termios.TCSANOW, mode)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.setpgid(0, 0)\n"
        "    os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])\n"
        "_, status = os.waitpid(child, os.WUNTRACED)\n"
        "print('stopped' if os.WIFSTOPPED(status) else f'ended with {status}')\n"
    )
    assert seen_of([sys.executable, "-c", launcher, ONE]) == "ended with 0\n"


@pytest.mark.usefixtures("environ")
def test_a_miss_that_was_refused_is_no_compile():
    refused = f"{LAUNCH}\ntry: launched(*kernel('a'))\nexcept LookupError: pass\n"
    said = seen(refused, GPUCACHE_REQUIRE_HIT="1")
    assert said == "gpucache: 1 not here (GPUCACHE_REQUIRE_HIT), 0 taken from the store\n"


@pytest.mark.usefixtures("environ", "triton")
def test_under_gpucache_run_real_kernels_end_with_it(root):
    said = seen_of(
        [sys.executable, "-m", "gpucache", "run", "--", sys.executable, str(KERNELS), "2", "90"],
        env={"TRITON_CACHE_DIR": "", "GPUCACHE_FAKE_DEVICES": "1"},
    )
    assert said.splitlines()[-1] == "gpucache: 2 compiled here, 0 taken from the store"
