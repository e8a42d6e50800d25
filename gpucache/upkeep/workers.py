"""`looks`: looks at many keys in several processes, for `verify`; `serve` is what each of these processes does.

The processes are plain children that are asked through pipes, and not those of `multiprocessing`: these would run the
caller's main module again, and outlive a caller that is killed. Reading and hashing a kernel's small files is mostly
Python's own work, so that threads would gain nothing.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import BinaryIO, NamedTuple, cast

from gpucache.report.judge import Judge
from gpucache.upkeep.looks import Seen, Unit, look

LEAST_UNITS = 1000
"""A process is started for so many keys; it takes as long to start as to look at half of them."""
_CHUNK_UNITS = 32
START = """if True:
    import sys
    sys.path[:] = {path!r}
    from gpucache.upkeep.workers import serve
    serve({answers})
"""


def looks(
    units: Sequence[Unit], twice: bool, processes: int | None = None
) -> Generator[Seen, None, None]:
    """Look at each key, in the order of ``units``; ``twice`` is handed on to `look`.

    ``processes`` is how many are used at most, by default as many as there are cores; where that leaves one, or a
    thousand keys for one, all is done in this process. What a process cannot do because it dies or cannot be started,
    this process does. Close the iterator to end the processes early; they end at once when this process does, after
    the few keys that they are at.

    Raises:
        Exception: what was raised in a process, with its traceback as the cause.
    """
    most = _cores() if processes is None else processes
    count = min(most, len(units) // LEAST_UNITS)
    if count >= 2:
        yield from _ask_processes(units, twice, count)
        return
    judge = Judge()
    for unit in units:
        yield look(judge, unit, twice)


def _ask_processes(units: Sequence[Unit], twice: bool, count: int) -> Generator[Seen, None, None]:
    """Ask ``count`` processes, each by a thread of its own: whichever is free gets the next keys."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and seldom needed

    starts = range(0, len(units), _CHUNK_UNITS)
    chunks = [units[start : start + _CHUNK_UNITS] for start in starts]
    free: SimpleQueue[_Worker] = SimpleQueue()

    def ask(chunk: Sequence[Unit]) -> list[Seen]:
        worker = free.get()
        try:
            return worker.looks(chunk, twice)
        finally:
            free.put(worker)

    with ExitStack() as stack:
        for _ in range(count):
            worker = _Worker()
            stack.callback(worker.close)
            free.put(worker)
        threads = ThreadPoolExecutor(count, thread_name_prefix="gpucache-verify")
        stack.callback(threads.shutdown, cancel_futures=True)  # before the processes are closed
        for answer in threads.map(ask, chunks):
            yield from answer


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """A process that answers one question after another; where it cannot be had, this process answers instead."""

    def __init__(self) -> None:
        self._judge = Judge()
        self._process = _started()

    def looks(self, units: Sequence[Unit], twice: bool) -> list[Seen]:
        """Let the process look at these keys.

        Raises:
            Exception: what was raised in the process.
        """
        try:
            question = (tuple(units), twice)
            answer = self._asked(question)
        except (OSError, EOFError, pickle.UnpicklingError):  # it could not be started, or died
            self.close()
            return [look(self._judge, unit, twice) for unit in units]
        if isinstance(answer, _Failure):
            raise answer.error from RuntimeError(f"in a process of verify:\n{answer.told}")
        return answer

    def _asked(self, question: tuple[tuple[Unit, ...], bool]) -> list[Seen] | _Failure:
        if self._process is None:
            raise EOFError("there is no process")
        pickle.dump(question, self._process.questions)
        self._process.questions.flush()
        answer: list[Seen] | _Failure = pickle.load(self._process.answers)
        return answer

    def close(self) -> None:
        """End the process, which is not in the middle of an answer."""
        if self._process is None:
            return
        child, questions, answers = self._process
        self._process = None
        child.kill()
        child.wait()
        answers.close()
        with suppress(OSError):  # a question that it has not read
            questions.close()


class _Process(NamedTuple):
    """A process, with the pipe that it reads and the one that it writes."""

    child: subprocess.Popen[bytes]
    questions: BinaryIO
    answers: BinaryIO


def _started() -> _Process | None:
    """Start a process that runs `serve`; None where it cannot be started."""
    if not sys.executable:
        return None
    flags = ["-X", f"utf8={sys.flags.utf8_mode}"]  # names of files are to mean the same there
    if sys.flags.isolated:
        flags.append("-I")
    answers, its_end = os.pipe()
    start = START.format(path=sys.path, answers=its_end)
    command = [sys.executable, *flags, "-c", start]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(its_end,)
        )
    except OSError:  # the interpreter was removed by an upgrade, or no process can be made
        os.close(answers)
        return None
    finally:
        os.close(its_end)
    assert child.stdin is not None
    questions = cast("BinaryIO", child.stdin)
    return _Process(child, questions, open(answers, "rb"))


# ---- in the process


class _Failure:
    """An exception in a process, on its way to the caller."""

    def __init__(self, error: Exception, told: str) -> None:
        self.error = error
        self.told = told


def serve(answers: int) -> None:
    """Answer the questions on stdin, until there are no more, to this descriptor: anything may print to stdout."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches all processes; the caller ends us
    judge = Judge()
    is_over = suppress(EOFError, BrokenPipeError)
    with is_over, open(answers, "wb", buffering=0) as pipe:
        while True:
            units, twice = pickle.load(sys.stdin.buffer)
            try:
                seen = [look(judge, unit, twice) for unit in units]
                data = pickle.dumps(seen)
            except Exception as error:
                data = _failure(error)
            rest = memoryview(data)
            while rest:
                rest = rest[pipe.write(rest) :]


def _failure(error: Exception) -> bytes:
    told = traceback.format_exc()
    try:
        data = pickle.dumps(_Failure(error, told))
        pickle.loads(data)
    except Exception:  # one that cannot be sent, or not be made again
        said = f"{type(error).__name__}: {error}"
        replacement = RuntimeError(said)
        data = pickle.dumps(_Failure(replacement, told))
    return data
