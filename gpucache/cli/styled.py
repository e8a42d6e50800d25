"""rich's console on stdout, for what a person sees in colours: tables, findings, differences, what `top` shows."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpucache.cli.terminal import OutputError

if TYPE_CHECKING:
    from rich.console import Console


def stdout_console() -> Console:
    """A console on stdout that shows a letter which the locale lacks by its number, where Python by itself raises."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(highlight=False)


@contextmanager
def styled_output() -> Iterator[Console]:
    """The same console for the length of a ``with`` block.

    Raises:
        OutputError: stdout cannot be written.
    """
    console = stdout_console()
    try:
        yield console
    except OSError as error:
        raise OutputError(error) from error
