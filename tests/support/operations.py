"""Operations of gpucache into which a fault is put, each in a forked process with `tests/faults/inject.c` preloaded.

``main()`` runs what its arguments name, and prints one JSON object as its last line.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What a launch or a command imports late is imported here, once for all forked processes.
import triton.runtime.cache

import gpucache.cli.commands
import gpucache.cli.run
import gpucache.cli.run_ahead
import gpucache.cli.transfer
import gpucache.cli.transfer_pull
import gpucache.cli.transfer_unpack
import gpucache.remote.ask
import gpucache.remote.setting
import gpucache.store.eviction
import gpucache.store.fallback
import gpucache.store.leftovers
import gpucache.transfer.prefetch
import gpucache.transfer.pull
import gpucache.triton.fetched
import gpucache.triton.from_fallback
import gpucache.triton.shared_kernel
import gpucache.triton.single_file
import gpucache.warm.ahead.ahead
from gpucache.archive.read import PackReader
from gpucache.archive.signature import anyone
from gpucache.cli import main as command_line
from gpucache.disk.node import node_id
from gpucache.disk.processes import pid_namespace
from gpucache.errors import GpuCacheError
from gpucache.remote import outbox, pusher, write_behind
from gpucache.remote.object_names import entry_object
from gpucache.remote.shared_directory import UNFINISHED
from gpucache.store.manifest import MANIFEST, entry_path
from gpucache.store.recipe_file import add_recipe
from gpucache.warm.ahead.command import command_id
from support.known_kernels import GROUP, STAGES, content, innermost, key_of, launch, load_single
from support.recipes import recipe_file
from support.trees import OLD, left_by_stock

A, B, C = (key_of(seed) for seed in "abc")
S = key_of("s")
"""The key of files that stand for themselves."""
HANG_S = 50.0
_TRACED = "FAULTS_TRACED"
"""The variable that says: wait for a tracer, and end with the operation."""

_COMMANDS: dict[str, tuple[str, ...]] = {
    "provision": ("provision",),
    "prune": ("prune", "--max-entries", "1", "--yes"),
    "slim": ("prune", "--max-entries", "0", "--keep-binaries", "--yes"),
    "clean": ("clean", "--yes"),
    "verify": ("verify",),
    "repair": ("verify", "--repair"),
    "stats": ("stats",),
    "ls": ("ls",),
    "du": ("du",),
    "doctor": ("doctor",),
    "path": ("path", "0"),
}


class Injection:
    """The preloaded library, as this process sees it."""

    def __init__(self, home: str) -> None:
        self._library = ctypes.CDLL(None)
        for directory in (home, "/dev/shm/gpucache"):
            self._library.faults_watch(directory.encode())

    def arm(self, number: int, what: int, mode: int, log: str) -> None:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._library.faults_arm(ctypes.c_long(number), what, mode, fd)

    def disarm(self) -> int:
        return int(self._library.faults_disarm())

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what the program itself does: its own reads may fail, and are no matter of gpucache's."""
        if _TRACED in os.environ:  # who traces cannot tell whose they are
            yield
            return
        self._library.faults_pause(1)
        try:
            yield
        finally:
            self._library.faults_pause(0)


# ---- the trees in which operations begin


def _launch_all(root: Path, *keys: str) -> None:
    for device in ("0", "1"):
        os.environ["TRITON_CACHE_DIR"] = f"{root}/triton/{device}"
        for key in keys:
            launch(key)


def _aged(root: Path) -> None:
    """As if everything had been used an hour ago last."""
    for path in root.rglob(MANIFEST):
        os.utime(path, (OLD, OLD))


def _two(root: Path) -> None:
    """Two kernels in the store and in both device directories."""
    command_line.main(["provision"])
    _launch_all(root, A, B)
    _aged(root)


def _one_device(root: Path) -> None:
    """Two kernels in the store and in one device directory; an autotuner's results and a library."""
    command_line.main(["provision"])
    os.environ["TRITON_CACHE_DIR"] = f"{root}/triton/0"
    for key in (A, B):
        launch(key)
    for name in ("launcher.so", "add.autotune.json"):
        load_single(S, name)
    _aged(root)


def _stock(root: Path) -> None:
    """A kernel that Triton's own manager has left, an hour ago."""
    command_line.main(["provision"])
    manager = triton.runtime.cache.FileCacheManager(A)
    group = {name: manager.put(content(A, name), name) for name in STAGES}
    manager.put_group(GROUP, group)
    for path in (root / "triton/0" / A).iterdir():
        os.utime(path, (OLD, OLD))


def _damaged(root: Path) -> None:
    """Two kernels, of which one has lost a file everywhere, and the other the end of one."""
    _two(root)
    for path in root.rglob("add.cubin"):
        if path.parent.name == A:
            path.unlink()
        elif path.stat().st_size:
            os.truncate(path, 0)


def _forged(root: Path) -> None:
    """Two kernels, of which one has a file of other content, but of the same size and time."""
    _two(root)
    for path in root.rglob(MANIFEST):
        os.utime(path)  # after a boot, the first use checks digests
    for path in root.glob("gpucache/v1/store/*/*/add.cubin"):
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _littered(root: Path) -> None:
    """Two kernels, and what killed processes leave."""
    _two(root)
    left_by_stock(root / "triton/1", C)
    for directory in ("gpucache/v1/tmp", "triton/0"):
        stray = root / directory / "tmp.gpucache-left"
        shutil.copytree(root / "triton/0" / A, stray)
        os.utime(stray, (OLD - 7200, OLD - 7200))
    for _ in range(3):
        if os.fork() == 0:
            gpucache.triton.manager._locations.clear()
            launch(A)
            os._exit(0)
        os.wait()


def _recorded(root: Path) -> None:
    """Two kernels; recipes of others, in a file and as a run of a command has left them."""
    _two(root)
    recipe_file(root.parent / "recipes.jsonl", 3)
    for pid in ("999999991", "999999992"):
        directory = root / "gpucache/v1/recipes"
        directory.mkdir(exist_ok=True, mode=0o700)
        name = f"{command_id(['true'], {})}.{node_id()}.{pid_namespace()}.{pid}.1.recipes"
        recipe_file(directory / name, 2)
    os.chmod(directory / name, 0o600)


def _packed(root: Path) -> None:
    """Two kernels, of which one is in a pack alone, beside the root, and the other there too."""
    _two(root)
    assert _transfer(root, "pack", "-o") == 0
    shutil.rmtree(entry_path(str(root), B))
    for device in ("0", "1"):
        shutil.rmtree(root / "triton" / device / B)


def _transfer(root: Path, *words: str) -> int:
    return command_line.main([*words, f"{root.parent}/kernels.tar.zst"])


def _offered(root: Path) -> None:
    """As `_packed`, with the pack in a directory that is a remote."""
    _packed(root)
    place = _shared(root) / "v1/packs"
    place.mkdir(parents=True)
    os.rename(f"{root.parent}/kernels.tar.zst", place / "kernels")


def _waiting(root: Path) -> None:
    """Two kernels, of which one is still to be given to a directory beside the root."""
    _two(root)
    _shared(root).mkdir()
    outbox.leave(str(root), A)


def _beside(root: Path) -> None:
    """Two kernels; another kernel and a library in another root, which may be the fallback of this one."""
    own = os.environ["GPUCACHE_DIR"]
    os.environ["GPUCACHE_DIR"] = str(_fallback(root))
    os.environ["TRITON_CACHE_DIR"] = f"{_fallback(root)}/triton/0"
    launch(C)
    load_single(S, "launcher.so")
    os.environ["GPUCACHE_DIR"] = own
    gpucache.triton.manager._locations.clear()
    _two(root)


def _fallback(root: Path) -> Path:
    return root.parent / "beside"


def _shared(root: Path) -> Path:
    return root.parent / "shared"


def _writing(root: Path) -> dict[str, str]:
    """The environment of who gives a directory what it has compiled, and need not sign."""
    return {"GPUCACHE_REMOTE": f"file://{_shared(root)}?mode=write&trust=owner"}


TREES: dict[str, Callable[[Path], None]] = {
    "empty": lambda root: None,
    "two": _two,
    "one-device": _one_device,
    "stock": _stock,
    "damaged": _damaged,
    "littered": _littered,
    "forged": _forged,
    "recorded": _recorded,
    "packed": _packed,
    "offered": _offered,
    "waiting": _waiting,
    "beside": _beside,
}


# ---- the operations


def _elsewhere(root: Path) -> str:
    return f"{root.parent}/elsewhere/triton"


class Operation:
    """What is done in which tree."""

    def __init__(
        self, tree: str, run: Callable[[Path, Injection], object], device: str = "0", **env: str
    ) -> None:
        self.tree = tree
        self.run = run
        self.device = device
        """The device directory of the process, or ``elsewhere``."""
        self.env = env


def _launching(key: str) -> Callable[[Path, Injection], object]:
    return lambda root, injection: launch(key, injection.aside)


def _loading(name: str) -> Callable[[Path, Injection], object]:
    return lambda root, injection: load_single(S, name, injection.aside)


def _calling(name: str) -> Callable[[Path, Injection], object]:
    def run(root: Path, injection: Injection) -> object:
        code = command_line.main(_COMMANDS[name])
        assert code in (0, 1), f"exit code {code}"
        return code

    return run


def _falling_back(
    do: Callable[[Path, Injection], object],
) -> Callable[[Path, Injection], object]:
    def run(root: Path, injection: Injection) -> object:
        os.environ["GPUCACHE_FALLBACK"] = str(_fallback(root))
        return do(root, injection)

    return run


def _transferring(*words: str) -> Callable[[Path, Injection], object]:
    def run(root: Path, injection: Injection) -> object:
        code = _transfer(root, *words)
        assert code in (0, 1), f"exit code {code}"
        return code

    return run


def _pulling(root: Path, injection: Injection) -> object:
    os.environ |= _writing(root)
    code = command_line.main(["pull", "kernels"])
    assert code in (0, 1), f"exit code {code}"
    return code


def _running_with_a_pack(root: Path, injection: Injection) -> object:
    """Start a command under `GPUCACHE_PACK`, up to where it would become the program; another process would pull."""
    executed = []
    os.environ |= _writing(root) | {"GPUCACHE_PACK": "kernels"}
    gpucache.cli.run._execute = lambda command, environ, given=None: executed.append(environ)
    gpucache.transfer.prefetch.start_detached = lambda command, environ, kept: 1
    gpucache.remote.ask.start_detached = lambda *_: None
    command_line.main(["run", "--", "true"])
    assert executed
    return None


def _leaving_word(root: Path, injection: Injection) -> object:
    """Compile a kernel that is to be pushed; no pusher is started, since that is another process."""
    os.environ |= _writing(root)
    write_behind.LEAST_COMPILE_S = 0.0
    write_behind.start_beside = lambda *_: None
    return launch(C, injection.aside)


def _pushing(root: Path, injection: Injection) -> object:
    """Push as the process does whose errors nobody reads: what the remote then has is whole."""
    pusher.IDLE_S = pusher.LONGEST_PAUSE_S = 0.0
    with injection.aside():  # as if an hour had passed
        for path in (
            *root.glob("gpucache/v1/locks/remote-*.push"),
            *_shared(root).rglob(f"{UNFINISHED}*"),
        ):
            path.unlink()
    with contextlib.suppress(GpuCacheError, OSError):
        pusher.push_waiting(str(root), _writing(root))
    with injection.aside():
        pushed = _shared(root) / entry_object("3.9.0", A)
        if pushed.exists():
            with pushed.open("rb") as file, PackReader(file, anyone, source_name="it") as reader:
                for _, _, pieces in reader.files():
                    assert list(pieces)
    return None


def _evicting(root: Path, injection: Injection) -> object:
    """Launch one more kernel than the limit allows, and wait for the turn of eviction."""
    result = launch(C, injection.aside)
    gc.collect()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.name.startswith("pymain"):
            thread.join(HANG_S / 2 if not thread.daemon else 2.0)
    return result


def _asking(root: Path, injection: Injection) -> object:
    """Launch a kernel that a remote is asked for, whose courier does not come up; none is started here."""
    gpucache.remote.ask.start_beside = lambda module, words, environ: None
    gpucache.remote.ask._LOOK_S = 0.1  # longer than the limit: each run looks once
    return launch(C, injection.aside)


def _adding_a_recipe(root: Path, injection: Injection) -> object:
    """Give the entry of one kernel a recipe, as a launch does that finds none there."""
    lock = f"{root}/gpucache/v1/locks/{A}.lock"
    entry, view = entry_path(str(root), A), f"{root}/triton/0/{A}"
    add_recipe(entry, view, A, b'{"key":"' + A.encode() + b'"}', lambda: lock)
    return launch(A, injection.aside)


def _running(*options: str) -> Callable[[Path, Injection], object]:
    """Start a command, up to where it would become the program; no pool is started, since that is another process."""

    def run(root: Path, injection: Injection) -> object:
        executed = []
        words = [*options, f"{root.parent}/recipes.jsonl"] if options[-1] == "--warm" else options
        gpucache.cli.run._execute = lambda command, environ, given=None: executed.append(environ)
        gpucache.warm.ahead.ahead.start_detached = lambda command, environ: None
        code = command_line.main(["run", *words, "--", "true"])
        # The file that was named, and that cannot be read, is the one thing that may stop a command.
        assert executed or code == 1, f"exit code {code}"
        return None

    return run


OPERATIONS: dict[str, Operation] = {
    "first-compile": Operation("empty", _launching(A)),
    "compile": Operation("two", _launching(C)),
    "hit": Operation("two", _launching(A)),
    "view": Operation("one-device", _launching(A), device="1"),
    "view-elsewhere": Operation("one-device", _launching(A), device="elsewhere"),
    "add-recipe": Operation("two", _adding_a_recipe),
    "adopt": Operation("stock", _launching(A)),
    "mend": Operation("damaged", _launching(A)),
    "library": Operation("two", _loading("launcher.so")),
    "library-hit": Operation("one-device", _loading("launcher.so")),
    "library-view": Operation("one-device", _loading("launcher.so"), device="1"),
    "autotune": Operation("two", _loading("add.autotune.json")),
    "autotune-hit": Operation("one-device", _loading("add.autotune.json")),
    "fall-back": Operation("beside", _falling_back(_launching(C))),
    "library-fall-back": Operation("beside", _falling_back(_loading("launcher.so"))),
    "ask": Operation(
        "two",
        _asking,
        GPUCACHE_REMOTE="file:///nowhere?trust=owner",
        GPUCACHE_REMOTE_TIMEOUT_S="0.05",
    ),
    "evict": Operation("two", _evicting, GPUCACHE_MAX_SIZE="1"),
    "provision": Operation("empty", _calling("provision")),
    "provision-again": Operation("two", _calling("provision")),
    "prune": Operation("littered", _calling("prune")),
    "slim": Operation("littered", _calling("slim")),
    "clean": Operation("littered", _calling("clean")),
    "verify": Operation("littered", _calling("verify")),
    "repair": Operation("damaged", _calling("repair")),
    "stats": Operation("littered", _calling("stats")),
    "ls": Operation("littered", _calling("ls")),
    "du": Operation("littered", _calling("du")),
    "doctor": Operation("two", _calling("doctor")),
    "path": Operation("two", _calling("path")),
    "pack": Operation("two", _transferring("pack", "-o")),
    "unpack": Operation("packed", _transferring("unpack", "--unsigned")),
    "pull": Operation("offered", _pulling),
    "run-pack": Operation("offered", _running_with_a_pack),
    "leave-word": Operation("two", _leaving_word),
    "push": Operation("waiting", _pushing),
    "run-warm": Operation("recorded", _running("--warm")),
    "run-auto": Operation("recorded", _running("--warm", "auto")),
    "forged": Operation("forged", _launching(A)),
}


# ---- the programs of the forked processes


def _tree(root: Path, name: str) -> object:
    """Make the tree in which an operation begins."""
    TREES[name](root)
    return None


def _operate(root: Path, name: str, number: str, what: str, mode: str, log: str) -> object:
    """Do an operation with a fault in it."""
    operation = OPERATIONS[name]
    injection = Injection(str(root.parent))
    if _TRACED in os.environ:
        _wait_for_a_tracer()
    injection.arm(int(number), int(what), int(mode), log)
    try:
        result = operation.run(root, injection)
    except Exception as error:
        injection.disarm()
        if innermost(error) == triton.runtime.cache.__file__:
            return {"calls": 0, "result": "stock"}  # Triton's own manager may fail as it does
        raise
    return {"calls": injection.disarm(), "result": result}


def _wait_for_a_tracer() -> None:
    """Let any process trace this one (``PR_SET_PTRACER``), and wait until there is one."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))
    os.write(1, b"begin\n")
    sys.stdin.readline()


def _again(root: Path, name: str) -> object:
    """Do an operation without a fault."""
    operation = OPERATIONS[name]
    return operation.run(root, Injection(str(root.parent)))


def _launches(root: Path) -> object:
    """Launch everything on both devices, as each next process may; how many were compiled."""
    compiled = 0
    for device in ("0", "1"):
        os.environ["TRITON_CACHE_DIR"] = f"{root}/triton/{device}"
        for key in (A, B, C):
            compiled += launch(key) == "compiled"
        compiled += load_single(S, "launcher.so") == "compiled"
        load_single(S, "add.autotune.json")  # shared between devices of known silicon only
    return compiled


def _verified(root: Path) -> object:
    """Verify; the exit code, with what there is to say on stdout."""
    return command_line.main(["verify"])


def _swept(root: Path) -> object:
    """What any next process does that comes by, and `prune` without a limit."""
    _launches(root)
    return command_line.main(["prune", "--yes"])


PROGRAMS: dict[str, Callable[..., object]] = {
    "swept": _swept,
    "tree": _tree,
    "operate": _operate,
    "again": _again,
    "launches": _launches,
    "verified": _verified,
}


def main() -> None:
    """``PROGRAM ROOT WORD…``, in an environment that the caller has made."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    program, root, *words = sys.argv[1:]
    said: dict[str, Any] = {}
    try:
        said["result"] = PROGRAMS[program](Path(root), *words)
    except BaseException:
        said["raised"] = traceback.format_exc()
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, b"\n" + json.dumps(said).encode() + b"\n")
    if program != "operate" or _TRACED in os.environ:
        os._exit(0)  # a Python with Triton in it takes long to end
