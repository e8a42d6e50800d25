"""`gpucache run --record` and `--warm` as whole commands, with the real pool and modules that take their time."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, python_path
from support.recipes import key_of, recipe_file, stored

from gpucache.kernels.recipe import Function
from gpucache.warm.ahead.programs import programs_path

GPUCACHE = [sys.executable, "-m", "gpucache"]
GONE_S = 2.0
SLEEPER = """
import os, time
with open({log!r}, "a") as log:
    log.write(f"{{os.getpid()}} ")
while True:
    time.sleep(0.01)
"""


def until(condition, seconds=PATIENCE_S):
    """Go on once the condition holds; what it then is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.02)
    return found


@pytest.fixture
def environ(tmp_path, root, gpucache) -> dict[str, str]:
    """The environment of a node with one device, whose root is there; and a mark by which its processes are known."""
    (tmp_path / "modules").mkdir()
    made = {**os.environ, "GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "1"}
    made |= {"PYTHONPATH": python_path(tmp_path / "modules"), "OF_TEST": str(tmp_path)}
    assert gpucache("provision", env=made).returncode == 0
    return made


@pytest.fixture
def run(environ, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [*GPUCACHE, "run", *map(str, words)]
        return subprocess.run(
            command,
            env={**environ, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
        )

    return run


@pytest.fixture
def busy(environ, tmp_path) -> Iterator[Path]:
    """A file of a recipe whose module never ends to be imported, so that a pool works as long as it may."""
    module = tmp_path / "modules/sleeper.py"
    module.write_text(SLEEPER.format(log=str(tmp_path / "imported")))
    function = Function("sleeper", "add", str(module), "0" * 64)
    recipe_file(tmp_path / "busy.jsonl", function=function, triton_version=installed())
    yield tmp_path / "busy.jsonl"
    for pid in of_test(tmp_path):
        with suppress(ProcessLookupError):  # a worker ends with its pool
            os.kill(pid, signal.SIGKILL)


def of_test(directory: Path) -> list[int]:
    """The processes that have this test's mark in their environment, and are none of the test's programs."""
    mark = f"OF_TEST={directory}\0".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or mark not in Path(f"/proc/{name}/environ").read_bytes():
                continue
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if b"input()" not in words and words:
            found.append(int(name))
    return found


class Program:
    """A program that runs until it is killed, started by `gpucache run`."""

    def __init__(self, environ: dict[str, str], *options: object) -> None:
        command = [*GPUCACHE, "run", *map(str, options), "--", sys.executable, "-c", "input()"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environ, stdin=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def program(environ) -> Iterator[Callable[..., Program]]:
    started = []

    def start(*options: object) -> Program:
        started.append(Program(environ, *options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def held_locks(root: Path) -> list[str]:
    """The lock files of keys and pools that are there."""
    return [path.name for path in (root / "gpucache/v1/locks").glob("*.lock")]


class TestRecord:
    def test_the_variable_names_the_file_wherever_the_command_goes(self, run, tmp_path):
        done = run("--record", "r.jsonl", "--", "sh", "-c", "cd /; echo $GPUCACHE_RECORD")
        assert done.stdout == f"{tmp_path}/r.jsonl\n"
        assert done.stderr == ""

    def test_it_replaces_one_that_was_set(self, run, tmp_path):
        done = run("--record", "r", "--", "sh", "-c", "echo $GPUCACHE_RECORD", GPUCACHE_RECORD="/x")
        assert done.stdout == f"{tmp_path}/r\n"

    def test_without_the_plug_in_it_says_that_nothing_is_recorded(self, run):
        done = run("--record", "r", "--no-plugin", "--", "true")
        assert "note: --record: without the plug-in nothing is recorded\n" in done.stderr


class TestWarm:
    def test_one_line_says_what_is_done_and_the_command_goes_on(self, run, busy):
        done = run("--warm", busy, "--jobs", "3", "--", "echo", "hello")
        assert done.returncode == 0
        assert done.stdout == "hello\n"
        pattern = r"note: --warm: process \d+ compiles what is missing \(1 of 1 recipes\) of "
        pattern += rf"{busy}, 3 kernels at once\n"
        assert re.fullmatch(pattern, done.stderr)

    def test_where_nothing_is_missing_nothing_starts(self, run, tmp_path, root):
        for key in recipe_file(tmp_path / "r", 3, triton_version=installed()):
            stored(root, key)
        done = run("--warm", "r", "--", "true")
        assert done.stderr == (
            f"note: --warm: nothing to compile: all 3 recipes of {tmp_path}/r are there\n"
        )
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)
        assert of_test(tmp_path) == []

    @pytest.mark.parametrize("data", [b"", bytes(1000)])
    def test_a_file_without_a_recipe_is_told(self, run, tmp_path, data):
        (tmp_path / "r.jsonl").write_bytes(data)
        done = run("--warm", "r.jsonl", "--", "true")
        assert "nothing to compile: there is no recipe in /" in done.stderr

    def test_a_link_to_the_file_is_followed(self, run, tmp_path, root):
        for key in recipe_file(tmp_path / "r", 2, triton_version=installed()):
            stored(root, key)
        (tmp_path / "link").symlink_to("r")
        assert (
            f"all 2 recipes of {tmp_path}/r are there" in run("--warm", "link", "--", "true").stderr
        )

    def test_another_triton_than_the_recorded_one_starts_it(self, run, tmp_path, root):
        for key in recipe_file(tmp_path / "r", 3, triton_version="0.0.1"):
            stored(root, key)
        done = run("--warm", "r", "--", "true")
        assert "(another Triton is installed than the recorded one; 3 recipes)" in done.stderr

    def test_of_several_ranks_one_says_so(self, environ, busy, tmp_path, root):
        """Whichever starts the pool, and whichever only joins."""
        command = [*GPUCACHE, "run", "--warm", str(busy), "--", sys.executable, "-c", "input()"]
        pipe = subprocess.PIPE
        ranks = []
        for rank in range(4):
            own = {**environ, "LOCAL_RANK": str(rank), "GPUCACHE_FAKE_DEVICES": "4"}
            process = subprocess.Popen(command, env=own, stdin=pipe, stderr=pipe, text=True)
            ranks.append(process)
        until((tmp_path / "imported").exists)
        said = [rank.communicate("\n", timeout=PATIENCE_S)[1] for rank in ranks]
        assert sum("note: --warm: process" in text for text in said) == 1
        assert len((tmp_path / "imported").read_text().split()) == 1, "one pool"

    def test_a_pipe_does_not_wait_for_it(self, environ, busy, tmp_path):
        """Nor does whoever captures the output, while the pool is at work."""
        line = f"{shlex.join(GPUCACHE)} run --warm {busy} -- sh -c 'until [ -e imported ]; do sleep 0.1; done' | cat"
        done = subprocess.run(
            ["bash", "-c", f"{line}; echo ended"],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.stdout == "ended\n"
        assert (tmp_path / "imported").exists()
        until(lambda: of_test(tmp_path) == [], GONE_S + 1)

    def test_srun_does_not_wait_for_it(self, two_node_slurm, environ, busy, tmp_path):
        """Each task asks; the first task of each node that is the first to ask starts it."""
        until_it_works = "until [ -e imported ]; do sleep 0.1; done"
        command = [*GPUCACHE, "run", "--warm", str(busy), "--", "sh", "-c", until_it_works]
        own = {**environ, "GPUCACHE_FAKE_DEVICES": "2"}
        done = two_node_slurm.run("srun", "--ntasks", "4", *command, cwd=tmp_path, **own)
        assert done.returncode == 0
        until(lambda: of_test(tmp_path) == [], GONE_S)

    def test_a_file_that_is_not_there_is_an_error_unless_that_is_said_to_be_none(self, run):
        done = run("--warm", "nowhere", "--", "echo", "hello")
        assert (done.returncode, done.stdout) == (1, "")
        assert "nowhere: No such file or directory" in done.stderr
        done = run("--warm", "nowhere", "--no-strict", "--", "echo", "hello")
        assert (done.returncode, done.stdout) == (0, "hello\n")

    def test_where_no_pool_can_be_started_the_command_runs_in_its_directories(
        self, run, busy, root
    ):
        """The file that must be locked for that is a directory."""
        Path(programs_path(str(root), [str(busy), ""])).mkdir()
        done = run("--warm", busy, "--", "sh", "-c", "echo $TRITON_CACHE_DIR")
        assert done.stdout == f"{root}/triton/0\n"
        assert "warning: --warm: nothing is compiled ahead: " in done.stderr

    def test_where_gpucache_is_disabled_nothing_is_done(self, run, busy, tmp_path):
        done = run("--warm", busy, "--", "true", GPUCACHE_DISABLE="1")
        assert done.returncode == 0
        assert "--warm" not in done.stderr
        assert of_test(tmp_path) == []

    def test_the_pool_executes_nothing_that_lies_in_the_current_directory(
        self, environ, busy, tmp_path
    ):
        """Anybody may have put modules there, at which the program does not look; nor does the command `gpucache`."""
        here = tmp_path / "here"
        here.mkdir()
        here.chmod(0o777)
        for module in ("json", "select", "selectors"):
            (here / f"{module}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
        # A process of which the coverage is measured may import from there before it executes anything.
        environ = {name: value for name, value in environ.items() if "COVERAGE" not in name}
        command = "import sys; del sys.path[0]; from gpucache.cli.main import main; main()"
        wait = f"until [ -e {tmp_path}/imported -o -e {tmp_path}/executed ]; do sleep 0.05; done"
        done = subprocess.run(
            [sys.executable, "-c", command, "run", "--warm", busy, "--", "sh", "-c", wait],
            env=environ,
            cwd=here,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("words", [("-m", "program"), ("-c", "import program")])
    def test_the_pool_finds_modules_where_the_program_does(self, environ, busy, tmp_path, words):
        (tmp_path / "here").mkdir()
        (tmp_path / "modules/sleeper.py").rename(tmp_path / "here/sleeper.py")
        code = "import os, time\nwhile not os.path.exists('../imported'): time.sleep(0.05)"
        (tmp_path / "here/program.py").write_text(code)
        command = ["run", "--warm", str(busy), "--", sys.executable, *words]
        done = subprocess.run(
            [*GPUCACHE, *command],
            env=environ,
            cwd=tmp_path / "here",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    def test_a_parent_that_asks_for_no_children_is_no_reason_to_warn(self, environ, busy, tmp_path):
        ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        ignoring += "os.execv(sys.argv[1], sys.argv[1:])"
        command = [*GPUCACHE, "run", "--warm", busy, "--", "true"]
        done = subprocess.run(
            [sys.executable, "-c", ignoring, *map(str, command)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "compiles what is missing" in done.stderr
        assert "warning: --warm" not in done.stderr

    def test_jobs_alone_is_wrong_usage(self, run):
        done = run("--jobs", "2", "--", "true")
        assert done.returncode == 2
        assert "--jobs is for --warm" in done.stderr


def installed() -> str:
    return pytest.importorskip("triton").__version__


KERNEL = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def add(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, i < n) + {value}, i < n)

compiled = []

def main():
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: compiled.append(not cache_hit)
    types = {{"x": "*fp32", "out": "*fp32", "n": "i32", "B": "constexpr"}}
    for size in (64, 128):
        triton.compile(ASTSource(add, types, {{"B": size}}), target=GPUTarget("cuda", 90, 32))
    print(sum(compiled))
"""


SLOW_STAGE = """
import os, time
from triton.backends.nvidia.compiler import CUDABackend

make_cubin = CUDABackend.make_cubin

def slow(*words, **options):
    if "FAST" not in os.environ:
        open({log!r}, "w").close()
        time.sleep(3600)
    return make_cubin(*words, **options)

CUDABackend.make_cubin = slow
"""
"""A compile that does not end but where the variable `FAST` is set."""


class TestRealKernels:
    """What is compiled ahead is what the program asks for."""

    def asked(self, run, *options: object) -> tuple[int, str]:
        """How many kernels a program compiles itself, and what `run` says."""
        done = run(*options, "--", sys.executable, "-c", "import kernel; kernel.main()")
        assert done.returncode == 0, done.stderr
        return int(done.stdout), done.stderr

    def edit(self, tmp_path: Path, value: int) -> None:
        (tmp_path / "modules/kernel.py").write_text(KERNEL.format(value=value))

    def test_a_program_compiles_nothing_that_was_compiled_ahead_also_after_an_edit(
        self, triton, run, tmp_path, root
    ):
        self.edit(tmp_path, 1)
        assert self.asked(run, "--record", "r.jsonl")[0] == 2
        assert "nothing to compile: all 2 recipes" in self.asked(run, "--warm", "r.jsonl")[1]
        self.edit(tmp_path, 2)
        side = root / "gpucache/v1/recipes"
        wait = f"until ls {side}/*.keys; do sleep 0.1; done"
        done = run("--warm", "r.jsonl", "--", "sh", "-c", wait)
        assert "(a source file has changed; 2 recipes)" in done.stderr
        compiled, said = self.asked(run, "--warm", "r.jsonl")
        assert compiled == 0
        assert "nothing to compile: all 2 recipes" in said


class TestAuto:
    def recorded(self, run, tmp_path, *words: object, count: int = 3, **more: str):
        """A run of a command, as which the plug-in records so many recipes; what is said of it."""
        recipe_file(tmp_path / "asked", count, triton_version=installed())
        copy = 'cat asked >> "$GPUCACHE_RECORD"' if count else "true"
        script = tmp_path / "train.sh"
        script.write_text(f"[ -z $GPUCACHE_RECORD ] || {copy}; echo recorded=$GPUCACHE_RECORD\n")
        return run("--warm", "auto", "--", "sh", "train.sh", *words, **more)

    def test_the_first_run_records_only_and_says_so(self, run, tmp_path, root):
        done = self.recorded(run, tmp_path)
        assert done.stderr == (
            "note: --warm auto: no run of this command has left recipes yet; this one records them\n"
        )
        (file,) = (root / "gpucache/v1/recipes").iterdir()
        assert done.stdout == f"recorded={file}\n"
        assert file.stat().st_mode & 0o777 == 0o600
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)

    def test_the_next_compiles_what_is_missing_of_what_the_last_asked_for(
        self, run, tmp_path, root
    ):
        self.recorded(run, tmp_path)
        stored(root, key_of(0))
        done = self.recorded(run, tmp_path)
        assert "compiles what is missing (2 of 3 recipes)" in done.stderr
        for number in (1, 2):
            stored(root, key_of(number))
        assert "nothing to compile: all 3 recipes" in self.recorded(run, tmp_path).stderr

    def test_a_run_that_records_nothing_takes_nothing_away(self, run, tmp_path):
        self.recorded(run, tmp_path)
        for _ in range(3):
            assert "of 3 recipes" in self.recorded(run, tmp_path, count=0).stderr

    def test_another_command_has_its_own(self, run, tmp_path):
        self.recorded(run, tmp_path, "--port", "1")
        assert "of 3 recipes" in self.recorded(run, tmp_path, "--port", "2").stderr
        assert "no run of this command" in self.recorded(run, tmp_path, "--seed", "2").stderr

    def test_of_several_ranks_one_records(self, environ, tmp_path, root):
        """While its process runs; the others say nothing of it."""
        ranks = []
        for rank in range(4):
            own = {**environ, "LOCAL_RANK": str(rank), "GPUCACHE_FAKE_DEVICES": "4"}
            command = [*GPUCACHE, "run", "--warm", "auto", "--", "sh", "-c"]
            pipe = subprocess.PIPE
            ranks.append(
                subprocess.Popen(
                    [*command, "echo $GPUCACHE_RECORD; read line"],
                    env=own,
                    stdin=pipe,
                    stdout=pipe,
                    stderr=pipe,
                    text=True,
                )
            )
        files = [rank.stdout.readline() for rank in ranks]
        said = [rank.communicate("\n", timeout=PATIENCE_S)[1] for rank in ranks]
        assert sorted(map(bool, map(str.strip, files))) == [False, False, False, True]
        assert sum("no run of this command" in text for text in said) == 1
        assert len(list((root / "gpucache/v1/recipes").iterdir())) == 1

    def test_a_file_of_the_users_own_is_kept(self, run, tmp_path, root):
        done = self.recorded(run, tmp_path, count=0, GPUCACHE_RECORD="/mine")
        assert done.stdout == "recorded=/mine\n"
        assert "what this run asks for is recorded in /mine alone" in done.stderr
        assert not (root / "gpucache/v1/recipes").exists()

    def test_an_inner_run_records_for_the_outer(self, run, root):
        inner = shlex.join(
            [*GPUCACHE, "run", "--warm", "auto", "--", "sh", "-c", "echo $GPUCACHE_RECORD"]
        )
        done = run("--warm", "auto", "--", "sh", "-c", f"echo $GPUCACHE_RECORD; {inner}")
        one, other = done.stdout.split()
        assert one == other
        assert done.stderr.count("--warm auto") == 1

    def test_a_link_in_the_place_of_the_directory_stops_no_command(self, run, root, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (root / "gpucache/v1/recipes").symlink_to(tmp_path / "elsewhere")
        done = run("--warm", "auto", "--", "echo", "hello")
        assert (done.returncode, done.stdout) == (0, "hello\n")
        assert "warning: --warm: nothing is compiled ahead: " in done.stderr
        assert list((tmp_path / "elsewhere").iterdir()) == []
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)

    def test_beside_a_run_that_records_another_says_that_it_does_not(self, environ, run):
        command = [*GPUCACHE, "run", "--warm", "auto", "--", "sh", "-c", "echo; read line"]
        pipe = subprocess.PIPE
        first = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True)
        first.stdout.readline()
        done = run(*command[command.index("--warm") :])
        first.communicate("\n", timeout=PATIENCE_S)
        assert "left recipes yet; another one records them" in done.stderr


class TestTheEnd:
    def test_the_pool_and_its_workers_end_with_the_program(self, program, busy, tmp_path, root):
        one = program("--warm", busy)
        until((tmp_path / "imported").exists)
        assert len(of_test(tmp_path)) >= 3, "the pool, its scheduler, an importer"
        one.kill()
        until(lambda: of_test(tmp_path) == [], GONE_S)
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)

    def recorded_slow(self, run, tmp_path, root) -> Path:
        """Recipes in ``r.jsonl`` of kernels that never end to compile; the file that is there once one begins."""
        compiling = tmp_path / "imported"
        slow = KERNEL.format(value=1) + SLOW_STAGE.format(log=str(compiling))
        (tmp_path / "modules/kernel.py").write_text(slow)
        done = run(
            "--record",
            "r.jsonl",
            "--",
            sys.executable,
            "-c",
            "import kernel; kernel.main()",
            FAST="1",
            GPUCACHE_DIR=f"{root}2",
        )
        assert done.stdout == "2\n", done.stderr
        return compiling

    def test_a_kernel_in_the_middle_of_its_compile_leaves_no_lock(
        self, triton, run, program, environ, tmp_path, root
    ):
        """Nor an entry that is half there; and the next program compiles it."""
        compiling = self.recorded_slow(run, tmp_path, root)
        one = program("--warm", tmp_path / "r.jsonl", "--jobs", "2")
        until(lambda: compiling.exists() and len(held_locks(root)) == 4)
        one.kill()
        until(lambda: of_test(tmp_path) == [], GONE_S)
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)
        done = run("--", sys.executable, "-c", "import kernel; kernel.main()", FAST="1")
        assert done.stdout == "2\n", done.stderr

    @pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None])
    def test_nor_does_one_of_a_warm_that_is_ended_or_one_over_its_time_limit(
        self, triton, by, run, environ, tmp_path, root
    ):
        compiling = self.recorded_slow(run, tmp_path, root)
        command = [*GPUCACHE, "warm", "r.jsonl", "-j", "2", "--time-limit", "300s" if by else "5s"]
        process = subprocess.Popen(
            command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        until(lambda: compiling.exists() and len(held_locks(root)) == 3)
        if by is not None:
            process.send_signal(by)
        process.communicate(timeout=PATIENCE_S)
        until(lambda: of_test(tmp_path) == [], GONE_S)
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)

    @pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_a_warm_that_is_ended_leaves_no_process(self, by, environ, busy, tmp_path):
        command = [*GPUCACHE, "warm", str(busy)]
        process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
        until((tmp_path / "imported").exists)
        process.send_signal(by)
        said = process.communicate(timeout=PATIENCE_S)[1]
        until(lambda: of_test(tmp_path) == [], GONE_S)
        assert process.returncode == (130 if by == signal.SIGINT else -by)
        told = "note: interrupted: nothing was gone through; what was compiled stays\n" in said
        assert told == (by == signal.SIGINT)

    @pytest.mark.kills
    def test_killed_at_any_moment_one_of_two_programs_leaves_the_other_its_pool(
        self, program, busy, tmp_path, root
    ):
        draw = random.Random(1)
        first = program("--warm", busy)
        until((tmp_path / "imported").exists)
        pools = set(of_test(tmp_path))
        for _ in range(20):
            second = program("--warm", busy)
            threading.Event().wait(draw.uniform(0, 0.3))
            second.kill()
        assert set(of_test(tmp_path)) == pools
        first.kill()
        until(lambda: of_test(tmp_path) == [], GONE_S)
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)

    @pytest.mark.kills
    def test_killed_at_any_moment_both_leave_nothing(self, program, busy, tmp_path, root):
        draw = random.Random(2)
        for _ in range(20):
            both = [program("--warm", busy) for _ in range(2)]
            threading.Event().wait(draw.uniform(0, 1.5))
            for one in both:
                one.kill()
            until(lambda: of_test(tmp_path) == [], GONE_S + 1)
            until(lambda: held_locks(root) == ["provision.lock"], GONE_S)

    def test_a_killed_pool_is_followed_by_another(self, program, busy, tmp_path, root):
        first = program("--warm", busy)
        until((tmp_path / "imported").exists)
        (state,) = (root / "gpucache/v1/locks").glob("ahead-*.lock")
        (pool,) = re.findall(r'"pid": (\d+)', state.read_text())
        os.kill(int(pool), signal.SIGKILL)
        until(lambda: of_test(tmp_path) == [], GONE_S)
        (tmp_path / "imported").unlink()
        second = program("--warm", busy)
        until((tmp_path / "imported").exists)
        first.kill()
        assert of_test(tmp_path)
        second.kill()
        until(lambda: of_test(tmp_path) == [], GONE_S)
        until(lambda: held_locks(root) == ["provision.lock"], GONE_S)
