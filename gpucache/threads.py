"""`start`: starts a thread; where none can be had, that is a refusal of the operating system's like any other."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        OSError: none can be started (``EAGAIN``). Python raises `RuntimeError` for that, as for a program's mistake.
    """
    try:
        thread.start()
    except RuntimeError as error:
        # Too many processes and threads; or the interpreter is ending (since CPython 3.12).
        said = f"{error} (a limit of the user, `ulimit -u`, or of the container, `pids.max`?)"
        raise OSError(errno.EAGAIN, said) from None
