"""`looks`: looks at many keys in several processes, for `verify`; `serve` is what each of these processes does.

The processes are plain children that are asked through pipes, and not those of `multiprocessing`: these would run the
caller's main module again, and outlive a caller that is killed. Reading and hashing a kernel's small files is mostly
Python's own work, so that threads would gain nothing.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from typing import BinaryIO, NamedTuple, cast

from gpucache.report.judge import Judge
from gpucache.upkeep.looks import Seen, Unit, look

LEAST_UNITS = 1000
"""A process is started for so many keys; it takes as long to start as to look at half of them."""
_CHUNK_UNITS = 32
_LEAST_DESCRIPTORS = 64
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
    the few keys that they are at. No thread is started: a library may be called where none can be.

    Raises:
        Exception: what was raised in a process, with its traceback as the cause.
    """
    most = _cores() if processes is None else processes
    count = min(most, len(units) // LEAST_UNITS)
    with ExitStack() as stack:
        workers = []
        if count >= 2 and not _few_descriptors():
            workers = _start_workers(count, stack)
        yield from _ask(workers, units, twice)


def _start_workers(count: int, stack: ExitStack) -> list[_Worker]:
    """Start so many processes, or none if one cannot be started; ``stack`` ends them."""
    workers = []
    for _ in range(count):
        process = _started()
        if process is None:
            return []
        worker = _Worker(process)
        stack.callback(worker.close)
        workers.append(worker)
    return workers


def _ask(
    workers: Sequence[_Worker], units: Sequence[Unit], twice: bool
) -> Generator[Seen, None, None]:
    """Give each process that is free the next keys, and what no process answers to this one."""
    judge = Judge()
    answered: dict[int, list[Seen]] = {}
    starts = range(0, len(units), _CHUNK_UNITS)
    chunks = [units[start : start + _CHUNK_UNITS] for start in starts]
    next_chunk = 0
    for wanted, chunk in enumerate(chunks):
        while wanted not in answered:
            for worker in workers:
                if worker.is_free and next_chunk < len(chunks):
                    worker.ask(next_chunk, chunks[next_chunk], twice)
                    next_chunk += 1
            asked = {worker.chunk for worker in workers if worker.is_busy}
            if wanted not in asked:  # no process has it, or the one that had it has died
                answered[wanted] = [look(judge, unit, twice) for unit in chunk]
                next_chunk = max(next_chunk, wanted + 1)
                break
            for worker in _ready(workers):
                number, seen = worker.answer()
                if seen is not None:
                    answered[number] = seen
        yield from answered.pop(wanted)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a process has answered, or ended, and return all that have."""
    poll = select.poll()
    by_descriptor = {}
    for worker in workers:
        if worker.is_busy:
            by_descriptor[worker.descriptor] = worker
            poll.register(worker.descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll()]


def _few_descriptors() -> bool:
    """Whether this process may open so few files that a process of its own could lack some to look with."""
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed != resource.RLIM_INFINITY and allowed < _LEAST_DESCRIPTORS


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """A process that answers one question after another, until it dies."""

    def __init__(self, process: _Process) -> None:
        self._process: _Process | None = process
        self.descriptor = process.answers.fileno()
        self.chunk: int | None = None
        """The number of the keys that it has been asked about, while there is no answer."""

    @property
    def is_free(self) -> bool:
        """Whether it can be asked."""
        return self._process is not None and self.chunk is None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is to come."""
        return self._process is not None and self.chunk is not None

    def ask(self, chunk: int, units: Sequence[Unit], twice: bool) -> None:
        """Ask it to look at these keys; if it has died, the answer says so."""
        assert self._process is not None
        self.chunk = chunk
        try:
            pickle.dump((tuple(units), twice), self._process.questions)
            self._process.questions.flush()
        except OSError:
            self.close()

    def answer(self) -> tuple[int, list[Seen] | None]:
        """The number of the keys, and what it has seen at them; None if it has died.

        Raises:
            Exception: what was raised in the process.
        """
        assert self._process is not None
        assert self.chunk is not None
        chunk, self.chunk = self.chunk, None
        try:
            answer: list[Seen] | _Failure = pickle.load(self._process.answers)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            return chunk, None
        if isinstance(answer, _Failure):
            raise answer.error from RuntimeError(f"in a process of verify:\n{answer.told}")
        return chunk, answer

    def close(self) -> None:
        """End the process, if it has not ended yet."""
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
    try:
        answers, its_end = os.pipe()
    except OSError:
        return None
    path = [os.fspath(entry) for entry in sys.path if isinstance(entry, (str, os.PathLike))]
    start = START.format(path=path, answers=its_end)
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
