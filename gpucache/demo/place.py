"""A directory that goes with the processes that use it, also where these are killed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from gpucache.demo import removing
from gpucache.disk.files import remove_tree
from gpucache.disk.refusal import refusal

if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE_S = 30.0
"""How long the end waits for the directory to go, in seconds."""


class Place:
    """A new directory in the temporary directory, private to this user. Use it as a context manager.

    It goes at the end, once the processes are gone to which ``kept_open`` was handed; where this process is killed, a
    process of its own removes it then.
    """

    path: str
    kept_open: int
    """A descriptor for each process that uses the directory, which closes it by its end alone."""

    def __enter__(self) -> Place:
        """Make the directory.

        Raises:
            ProvisionError: the operating system refused.
        """
        name = f"gpucache-demo-{secrets.token_hex(6)}"
        self.path = os.path.join(os.environ.get("TMPDIR", "/tmp"), name)
        try:
            self.path = os.path.join(os.path.realpath(tempfile.gettempdir()), name)
            # First, or a kill after the next line would leave the directory.
            self._remover, self.kept_open = _start_remover(self.path)
            try:
                os.mkdir(self.path, 0o700)
            except OSError:
                self._end()
                raise
        except OSError as error:
            raise refusal(self.path, error, "make") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        remove_tree(self.path)  # the other process may have been killed

    def _end(self) -> None:
        os.close(self.kept_open)
        with suppress(subprocess.TimeoutExpired):
            self._remover.wait(_PATIENCE_S)


def _start_remover(path: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process that removes the directory, and the descriptor by whose end it knows when.

    Raises:
        OSError: no process can be started.
    """
    ended, kept_open = os.pipe()
    command = [sys.executable, "-I", "-S", removing.__file__, path]
    try:
        remover = subprocess.Popen(command, stdin=ended, cwd="/", start_new_session=True)
    except OSError:
        os.close(kept_open)
        raise
    finally:
        os.close(ended)
    return remover, kept_open
