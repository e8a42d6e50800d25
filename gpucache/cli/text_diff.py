"""`print_diff`: a unified diff, in colours on a terminal that has some."""

from __future__ import annotations

from collections.abc import Sequence

from gpucache.cli.styled import styled_output
from gpucache.cli.terminal import is_terminal, print_bytes, shown_line

_STYLES = {"+++": "bold", "---": "bold", "@@": "cyan", "+": "green", "-": "red"}


def print_diff(lines: Sequence[str]) -> None:
    """Print the lines of a unified diff.

    Raises:
        OutputError: stdout cannot be written.
    """
    if is_terminal():
        _print_styled(lines)
    else:
        print_bytes("".join(f"{line}\n" for line in lines).encode())


def _print_styled(lines: Sequence[str]) -> None:
    from rich.text import Text

    with styled_output() as console:
        for line in lines:
            console.print(Text(shown_line(line), _style(line)), soft_wrap=True)


def _style(line: str) -> str:
    for beginning, style in _STYLES.items():
        if line.startswith(beginning):
            return style
    return ""
