"""The bars of `gpucache demo` on a terminal: a line for each rank, which grows with each kernel that the rank has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from types import TracebackType

    from gpucache.demo.comparison import Show
    from gpucache.demo.ranks import Kernel


class _ConsoleWithCursor(Console):
    """A console that lets the cursor be seen while bars are drawn.

    A process that is killed, or stopped by ctrl-Z, would leave a hidden one to the shell.
    """

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is."""
        return False


class Bars:
    """Draws the bars of one round of ranks below those of the round before. Use it as a context manager."""

    def __init__(self, ranks: int, kernels: int) -> None:
        self._ranks = ranks
        self._kernels = kernels
        self._console = _ConsoleWithCursor(stderr=True)
        self._progress: Progress | None = None

    def begun(self, title: str) -> Show:
        """Draw the bars of a new round; what draws each kernel in them."""
        self._end()
        self._console.print(title, style="bold")
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=self._kernels),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            auto_refresh=False,
        )
        tasks = [
            progress.add_task(f"rank {rank}", total=self._kernels, said="")
            for rank in range(self._ranks)
        ]
        compiled = [0] * self._ranks
        taken = [0] * self._ranks
        self._progress = progress
        progress.start()

        def drawn(kernel: Kernel) -> None:
            rank = kernel.rank
            counts = compiled if kernel.compiled else taken
            counts[rank] += 1
            said = f"{compiled[rank]} compiled"
            if taken[rank]:
                said = f"{said}, {taken[rank]} taken from other ranks"
            progress.update(tasks[rank], advance=1, said=said, refresh=True)

        return drawn

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
