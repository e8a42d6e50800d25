"""Do something as another user of the machine, for good, in a forked process: a command, a launch, any function."""

from __future__ import annotations

import codecs
import importlib
import io
import os
import pickle
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from typing import Any, NamedTuple

import gpucache
from gpucache import once
from gpucache.forks import run_at_exit
from gpucache.triton import manager
from support.processes import PATIENCE_S

_NOT_IMPORTED = ("gpucache.site", "gpucache.warm", "gpucache.__main__")


class Done(NamedTuple):
    """How a command or a function has ended."""

    value: Any
    """What the function returned; of a command, the exit status."""
    out: str
    err: str


@cache
def load_all() -> None:
    """Import what is imported late: the checkout may lie where no other user can read it."""
    for name in (
        "click",
        "rich.console",
        "rich.table",
        "rich.progress",
        "tempfile",
        "shutil",
        "zstandard",
    ):
        _import(name)
    codecs.lookup("utf-8-sig")
    for module in pkgutil.walk_packages(gpucache.__path__, "gpucache."):
        if not module.name.startswith(_NOT_IMPORTED):
            _import(module.name)


def _import(name: str) -> None:
    with suppress(ImportError):  # a Python that has Triton, and nothing for commands
        importlib.import_module(name)


def be(uid: int, groups: Sequence[int] = ()) -> None:
    """Become a user for good, who is in no group but his own and these."""
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def done_as(
    uid: int,
    act: Callable[[], Any],
    environ: Mapping[str, str] | None = None,
    umask: int = 0o077,
    groups: Sequence[int] = (),
) -> Done:
    """Call a function as a user who is in no group but his own and ``groups``, in another process.

    What it returns can be pickled.

    An exception fails the test, and so does a process that hangs.
    """
    load_all()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _act(lambda: be(uid, groups), act, environ or {}, umask, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        data = _read_with_patience(said, child)
    os.waitpid(child, 0)
    done: Done = pickle.loads(data)
    assert not isinstance(done.value, BaseException), done.err
    return done


def command_as(
    uid: int,
    *words: object,
    umask: int = 0o077,
    groups: Sequence[int] = (),
    **environ: str,
) -> Done:
    """Run a command of gpucache's, as `done_as`."""
    from gpucache.cli.main import main

    return done_as(uid, lambda: main([str(word) for word in words]), environ, umask, groups)


def _act(
    become: Callable[[], object],
    act: Callable[[], Any],
    environ: Mapping[str, str],
    umask: int,
    writing: int,
) -> None:
    """Be the user, act, tell, and end."""
    out, err = _stream(), _stream()
    try:
        become()
        os.umask(umask)
        os.environ.update(environ)
        manager._locations.clear()
        once.PLACES = ("/dev/shm",)
        with redirect_stdout(out), redirect_stderr(err):
            value: Any = act()
            run_at_exit()
    except BaseException as error:
        err.write(traceback.format_exc())
        value = RuntimeError(str(error))
    with suppress(OSError), os.fdopen(writing, "wb") as said:
        said.write(pickle.dumps(Done(value, _text(out), _text(err))))
    sys.stdout.flush()
    os._exit(0)


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    data: bytes = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return data.decode()


def _read_with_patience(said: io.BufferedReader, child: int) -> bytes:
    """All that the child says; it is killed where that takes too long."""
    import select
    import signal

    readable = select.poll()  # `select.select` takes no descriptor above 1,023
    readable.register(said, select.POLLIN | select.POLLHUP)

    end = time.monotonic() + PATIENCE_S
    data = b""
    while True:
        if not readable.poll(max(0, end - time.monotonic()) * 1000):
            os.kill(child, signal.SIGKILL)
            raise AssertionError("it hangs")
        piece = os.read(said.fileno(), 65536)
        if not piece:
            return data
        data += piece
