"""`GPUCACHE_RECORD`: the recipe of each kernel that this process asks for, hits included, appended to one file.

Each key once a process: a forked child does not write again what its parent has written. All that fails is told once,
and the launch goes on. What TorchInductor loads from its own cache, with its kernels in it, Triton is not asked for.
"""

from __future__ import annotations

import os

from gpucache.kernels.recipe_lines import BadRecipeFile, append
from gpucache.log import warn_once
from gpucache.triton.capture import recipe_text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


class Recorder:
    """Appends recipes to one file, from any thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._asked: set[str] = set()
        self._is_refused = False

    def asked(self, frame: FrameType, key: str) -> bytes | None:
        """Write the recipe for which a frame of Triton's `compile` asks, if this process has not asked for it before.

        Returns the recipe then, as a line; None for a key that is known, or of a kernel of which there is no recipe.
        Never raises.
        """
        # Two threads that come by here at once write one line more, which the reader drops.
        if key in self._asked:
            return None
        self._asked.add(key)
        recipe = recipe_text_of(frame, key)
        if recipe is not None and not self._is_refused:
            self._write(recipe)
        return recipe

    def _write(self, recipe: bytes) -> None:
        outcome = "the recipes of this program are not all recorded"
        try:
            append(self.path, recipe)
        except BadRecipeFile as error:
            self._is_refused = True
            warn_once("recipes cannot be recorded", error, f"{outcome}: {error.hint}")
        except Exception as error:  # on a full disk too; there may be room later
            warn_once("recipes cannot be recorded", error, outcome)


_recorders: dict[str, Recorder] = {}


def recorder_of(path: str) -> Recorder:
    """The one recorder of this process for a file, by its path as it is in the current directory of this moment.

    Raises:
        OSError: the current directory is gone.
    """
    return _recorders.setdefault(os.path.abspath(path), Recorder(os.path.abspath(path)))
