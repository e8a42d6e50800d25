"""A Python that has done what is slow, and forks a process for each piece of code: `WarmPython`.

To import Triton takes 0.1 s, and to hash its 500 MB, which is part of every key, 0.3 s: four fifths of a process that
compiles one small kernel or finds it cached. Both are done once here, in ``python warm.py FD PRELOAD``. What is forked
has its own environment, arguments and pipes, and ends as any Python does.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from pathlib import Path
from typing import Any

_MOST = 1 << 17
"""Bytes of a request, at most: it is one datagram."""


# ---- the side of the tests


class WarmPython:
    """Starts processes of one interpreter with Triton in it. Ended by `close`, or with the process that made it."""

    def __init__(self, python: Sequence[str], preload: str, env: Mapping[str, str]) -> None:
        """``python`` is a command with its options; ``preload`` is the code that it runs once."""
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*python, __file__, str(theirs.fileno()), preload]
            pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            self._server = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], **pipes)

    def start(self, code: str, *words: object, env: Mapping[str, str]) -> WarmProcess:
        """Run code in a new process, whose ``sys.argv[1:]`` are the words."""
        request = json.dumps(
            {"code": code, "words": [str(word) for word in words], "env": dict(env)}
        )
        inputs, outputs, errors, status = (os.pipe() for _ in range(4))
        theirs = [inputs[0], outputs[1], errors[1], status[1]]
        with self._asking:  # an answer is that to the last question
            socket.send_fds(self._socket, [request.encode()], theirs)
            pid = int(self._socket.recv(64))
        for fd in theirs:
            os.close(fd)
        return WarmProcess(pid, inputs[1], outputs[0], errors[0], status[0])

    def run(
        self,
        code: str,
        *words: object,
        env: Mapping[str, str],
        text: str = "",
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of ``python -c code``."""
        process = self.start(code, *words, env=env)
        try:
            out, err = process.communicate(text, timeout)
        finally:
            process.end()
        return subprocess.CompletedProcess([code, *words], process.wait(), out, err)

    def close(self) -> None:
        self._socket.close()
        self._server.wait()


class WarmProcess:
    """A forked process, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, status: int) -> None:
        self.pid = pid
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(stdin, "w", 1),
            os.fdopen(stdout),
            os.fdopen(stderr),
        )
        self.returncode: int | None = None
        self._status = os.fdopen(status, "rb")

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(self._status.read()))
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Write, read until the other side has closed, and wait. Killed when that takes longer."""
        with suppress(BrokenPipeError):  # it may have ended
            self.stdin.write(text)
        with suppress(BrokenPipeError):
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            read = [pool.submit(file.read) for file in (self.stdout, self.stderr)]
            try:
                out, err = (one.result(timeout) for one in read)
            except FutureTimeoutError:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
        self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # once it has ended, its number may be that of another process
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill it, if that is needed, and forget it."""
        self.kill()
        self.wait()
        for file in (self.stdin, self.stdout, self.stderr):
            with suppress(BrokenPipeError):
                file.close()


# ---- the side of the server


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; returns in the forked process, with the request. The server ends with the other side."""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    living: dict[int, tuple[int, int]] = {}
    while True:
        for key, _ in selector.select():
            if key.fd in living:
                selector.unregister(key.fd)
                _report(key.fd, *living.pop(key.fd))
                continue
            text, fds, _, _ = socket.recv_fds(requests, _MOST, 4)
            if not text:
                sys.exit()
            *standard, status = fds
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)  # a job of its own, as a shell makes of each command
                for number, fd in enumerate(standard):
                    os.dup2(fd, number)
                selector.close()
                requests.close()
                for fd in (*fds, *living, *(other for _, other in living.values())):
                    os.close(fd)
                return dict(json.loads(text))
            for fd in standard:
                os.close(fd)
            pidfd = os.pidfd_open(pid)
            living[pidfd] = (pid, status)
            selector.register(pidfd, selectors.EVENT_READ)
            requests.send(str(pid).encode())


def _report(pidfd: int, pid: int, status: int) -> None:
    os.write(status, str(os.waitpid(pid, 0)[1]).encode())
    os.close(status)
    os.close(pidfd)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent)
    exec(sys.argv[2], {})
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-c", *request["words"]]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
