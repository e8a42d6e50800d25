"""Put one fault into an operation, and see in fresh processes that nothing is wrong after it.

A fault (`Fault`) hits the N-th libc call that an operation of `support.operations` makes below its root. Afterwards
other processes launch every kernel, do the operation again without a fault, launch once more, and verify: `Sweep.tried`
returns what was wrong. All of them are forked from one warm Python that has the library of ``tests/faults/inject.c``
preloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import gpucache
from support.fault_list import MODES, NONE, Fault
from support.processes import PATIENCE_S, unmeasured
from support.warm import WarmProcess, WarmPython

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.operations import Operation

TESTS = Path(__file__).parents[1]
CODE = "from support import operations; operations.main()"


class Seen(NamedTuple):
    """What the trial of a fault has shown."""

    fault: Fault
    call: str
    """The call that was hit; empty if the operation did not come so far."""
    wrong: tuple[str, ...]
    """What is wrong, each a text; a fault that did no harm has none."""
    compiled: int
    """How many kernels were compiled in the first launches after it."""
    killed: bool
    """Whether the process was killed."""


def built(directory: Path) -> Path:
    """Compile the library that is preloaded."""
    library = directory / "inject.so"
    source = TESTS / "faults/inject.c"
    words = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "needs a C compiler"
    subprocess.run([compiler, *words, "-o", library, source, "-ldl"], check=True)
    return library


class Sweep:
    """A warm Python with the library, and the trees in which operations begin."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.library = built(base)
        paths = [str(Path(gpucache.__file__).parents[1]), str(TESTS), *filter(None, sys.path)]
        env = {
            **unmeasured(),
            "LD_PRELOAD": str(self.library),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        self._python = WarmPython([sys.executable], "import support.operations", env)
        self._trees: dict[tuple[str, str], Path] = {}
        self._left: dict[str, Counter[str]] = {}

    def close(self) -> None:
        """End the warm Python."""
        self._python.close()

    # ---- one fault

    def tried(self, fault: Fault, worker: str = "0") -> Seen:
        """Try a fault in the directory of a worker, and look at what is left."""
        operation = _operation(fault.operation)
        home = self._fresh(worker, operation.tree)
        elsewhere = f"{home}/elsewhere/triton"
        device = (
            elsewhere
            if operation.device == "elsewhere"
            else f"{home}/root/triton/{operation.device}"
        )
        env = {**operation.env, "TRITON_CACHE_DIR": device}
        log = home.parent / f"{worker}.log"
        words = (fault.operation, fault.number, fault.code, MODES[fault.mode], log)
        done = self._ran(home, "operate", *words, env=env)
        wrong = self._of_operation(fault, done)
        hit = [line[2:] for line in log.read_text().splitlines() if line.startswith("! ")]
        compiled, after = self._looked_after(fault.operation, home, env)
        wrong += after
        call = hit[0].replace(str(home), "") if hit else ""
        killed = done.returncode == -signal.SIGKILL
        return Seen(fault, call, tuple(wrong), compiled, killed)

    def _looked_after(
        self, operation: str, home: Path, env: Mapping[str, str]
    ) -> tuple[int, list[str]]:
        """How many kernels the first launches after a fault compile, and what is wrong then or later."""
        compiled, wrong = self._result(home, "launches")
        wrong += self._result(home, "again", operation, env=env)[1]
        wrong += self._result(home, "launches")[1]
        again, after = self._result(home, "launches")
        wrong += after
        if again:
            wrong.append(f"{again} kernels were compiled though all had been launched")
        verified = self._ran(home, "verified")
        if _last(verified).get("result") not in (0, 1):
            wrong.append(f"verify: {_short(verified.stderr)}")
        # A copy where a link was refused is right, and told by a warning.
        errors = [line for line in verified.stdout.splitlines() if line.startswith("error")]
        wrong += [f"verify: {line}" for line in errors]
        wrong += self._grown(operation, home, env)
        return compiled or 0, wrong

    def calls(self, operation: str, worker: str = "0") -> list[str]:
        """The calls below its root that an operation makes without a fault, each a function and a path."""
        seen = self.tried(Fault(operation, 0, "NONE"), worker)
        assert not seen.wrong, (operation, seen.wrong)
        lines = (self._base / f"{worker}.log").read_text().splitlines()
        return [line.replace(str(self._base / worker), "") for line in lines]

    def traced(self, operation: str, strace: str, only: str, trace: Path) -> tuple[str, str]:
        """Do an operation under strace, which writes ``trace``: the library's lines and those of strace."""
        home = self._fresh("0", _operation(operation).tree)
        log = home.parent / "0.log"
        words = (operation, 0, NONE, 0, log)
        process = self._start(home, "operate", *words, env={"FAULTS_TRACED": "1"})
        assert process.stdout.readline() == "begin\n"
        command = [strace, "-f", "-y", "-s", "4096", "-o", str(trace), "-e", only]
        with subprocess.Popen(
            [*command, "-p", str(process.pid)], stderr=subprocess.PIPE, text=True
        ) as tracing:
            assert tracing.stderr is not None
            assert "attached" in tracing.stderr.readline()
            process.communicate("\n", PATIENCE_S)
        process.end()
        lines = [line for line in trace.read_text().splitlines() if f"{home}/" in line]
        return log.read_text(), "\n".join(line for line in lines if f"{log}>" not in line)

    # ---- its parts

    def _fresh(self, worker: str, tree: str) -> Path:
        """The directory of a worker, with this tree in it: always at the same path, which groups name."""
        home = self._base / worker
        original = self._trees.get((worker, tree))
        if original is None:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            _, wrong = self._result(home, "tree", tree)
            assert not wrong, wrong
            original = self._base / f"{worker}-{tree}"
            _copied(home, original)
            self._trees[worker, tree] = original
        shutil.rmtree(home, ignore_errors=True)
        _copied(original, home)
        return home

    def _ran(
        self, home: Path, program: str, *words: object, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of `support.operations` to its end; one that hangs is killed, and says where it was."""
        process = self._start(home, program, *words, env=env)
        try:
            out, err = process.communicate("", PATIENCE_S)
        finally:
            process.end()
        return subprocess.CompletedProcess([program], process.wait(), out, err)

    def _start(
        self, home: Path, program: str, *words: object, env: Mapping[str, str] | None = None
    ) -> WarmProcess:
        root = home / "root"
        environ = {
            "HOME": "/nowhere",
            "PATH": os.environ["PATH"],
            "TMPDIR": str(home.parent / "tmp"),
            "FAULTS_LIBRARY": str(self.library),
            "GPUCACHE_DIR": str(root),
            "GPUCACHE_FAKE_DEVICES": "2xH100:9.0",
            "TRITON_CACHE_DIR": f"{root}/triton/0",
            # a lock whose holder was killed is not waited for long
            "GPUCACHE_STALL_TIMEOUT_S": "3",
            "GPUCACHE_LOCK_TIMEOUT_S": "5",
            **(env or {}),
        }
        (home.parent / "tmp").mkdir(exist_ok=True)
        return self._python.start(CODE, program, root, *words, env=environ)

    def _result(
        self, home: Path, program: str, *words: object, env: Mapping[str, str] | None = None
    ) -> tuple[Any, list[str]]:
        """What a program of a process without a fault gives, and what went wrong in it."""
        done = self._ran(home, program, *words, env=env)
        said = _last(done)
        if "result" in said:
            return said["result"], []
        return None, [f"{program}: {_short(said.get('raised', ''))}; {_short(done.stderr)}"]

    def _of_operation(self, fault: Fault, done: subprocess.CompletedProcess[str]) -> list[str]:
        """What is wrong with how the process ended in which the fault was."""
        if fault.what == "KILL" and done.returncode == -signal.SIGKILL:
            return []
        said = _last(done)
        wrong = []
        if "result" not in said:
            wrong.append(f"raised: {_short(said.get('raised', ''))}")
        if "Timeout (" in done.stderr:
            wrong.append(f"hangs: {done.stderr[-1500:]}")
        if "Traceback" in done.stderr:
            wrong.append(f"on stderr: {_short(done.stderr)}")
        if done.returncode:
            wrong.append(f"ended with {done.returncode}")
        return wrong

    def _grown(self, operation: str, home: Path, env: Mapping[str, str]) -> list[str]:
        """What there is more of below the home than after the same without a fault."""
        left = _left(home)
        if operation not in self._left:
            self._left[operation] = left
            return []
        more = left - self._left[operation]
        if more:
            self._age(home)
            wrong = self._result(home, "again", operation, env=env)[1]
            wrong += self._result(home, "swept")[1]
            if wrong:
                return wrong
            more = _left(home) - self._left[operation]
        return [f"left: {path}" for path in more]

    def _age(self, home: Path) -> None:
        """As if what is left over had been lying there for two days."""
        for path in home.rglob("*"):
            if "tmp.gpucache-" in str(path) or "/v1/tmp/" in str(path) or "removed" in path.name:
                before = path.lstat()
                days_ago = (before.st_atime - 172800, before.st_mtime - 172800)
                os.utime(path, days_ago, follow_symlinks=False)


def _operation(name: str) -> Operation:
    # Imported late: it imports Triton.
    from support.operations import OPERATIONS

    return OPERATIONS[name]


def _copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def _last(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    lines = done.stdout.splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        return {"raised": f"rc {done.returncode}, no result"}


def _left(home: Path) -> Counter[str]:
    """What there is below a home that could grow.

    Counters, the quarantine, what was pulled and the place of locks are bounded, with tests of their own. The files of
    entries are left out: a launch between two operations decides which are slim, and `verify` judges them.
    """
    masked = [_masked(path, home) for path in home.rglob("*")]
    apart = re.compile(r"/v1/(stats|quarantine|pulled)|[.]place$|/[A-Z2-7]{52}(-[0-9a-f]{16})?/")
    return Counter(name for name in masked if not apart.search(name))


def _short(text: str) -> str:
    """A traceback without the lines of code, in one line: its frames, and what was raised."""
    frames = re.findall(r'File "(?:[^"]*/)?([^"/]+/[^"/]+\.py)", line (\d+), in (\S+)', text)
    lines = text.strip().splitlines() or [""]
    return " < ".join(":".join(frame) for frame in reversed(frames[-7:])) + " | " + lines[-1][:300]


def _masked(path: Path, home: Path) -> str:
    """A path without what differs from run to run."""
    name = str(path.relative_to(home))
    return re.sub(r"(gpucache-[a-z]+-)[\w.-]+|[0-9a-f]{8,}|\d{4,}", r"\1?", name)


def all_tried(sweep: Sweep, faults: Sequence[Fault]) -> list[Seen]:
    """Try faults on all cores."""
    workers = [str(number) for number in range(os.cpu_count() or 1)]
    parts = [faults[number :: len(workers)] for number in range(len(workers))]

    def work(worker: str, part: Sequence[Fault]) -> list[Seen]:
        return [sweep.tried(fault, worker) for fault in part]

    with ThreadPoolExecutor(len(workers)) as pool:
        return [seen for done in pool.map(work, workers, parts) for seen in done]
