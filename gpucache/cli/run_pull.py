"""What `gpucache run` does under `GPUCACHE_PACK`, and what it says of that. Imports no click.

None of it keeps the command from running.
"""

from __future__ import annotations

from gpucache import environment
from gpucache.cli.failures import complain_of_defect
from gpucache.cli.terminal import refused
from gpucache.directories.local_rank import local_rank
from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from gpucache.transfer.prefetch import Prefetch

    class Say(Protocol):
        """Says a line once in a job; ``sentence`` is what the lines of its ranks have in common."""

        def __call__(self, text: str, sentence: str = "") -> None:
            """Say it, unless another rank has."""


def pull_packs(environ: Mapping[str, str], plugin: bool, say: Say) -> None:
    """Start the pull of the packs that `GPUCACHE_PACK` names, into the root of ``environ``. Never raises, nor waits.

    ``plugin`` is whether the command is to use the plug-in; stock Triton knows nothing of a store.
    """
    name = environment.PACK.name
    try:
        _pull_packs(environ, plugin, say)
    except GpuCacheError as error:
        way_out = f" ({error.hint})" if error.hint else ""
        say(f"warning: {name}: nothing is pulled ahead: {error.problem}{way_out}")
    except OSError as error:
        say(f"warning: {name}: nothing is pulled ahead: {refused(error)}")
    except Exception:
        complain_of_defect()  # which is no reason for the command not to run in its directories


def _pull_packs(environ: Mapping[str, str], plugin: bool, say: Say) -> None:
    names = environment.PACK.read(environ)
    if not names or environment.DISABLE.read(environ):
        return
    if not plugin or environment.SHARE.read_or_default(environ) is False:
        way_out = "`gpucache pull --views` serves a Triton without the plug-in"
        say(f"note: {environment.PACK.name}: nothing is pulled, as nothing would use it: {way_out}")
        return
    from gpucache.transfer.prefetch import configured_remote, pull_ahead

    url = configured_remote(environ)
    is_rank = local_rank(environ)[0] is not None
    root = environ[environment.ROOT.name]
    for one in pull_ahead(names, url, root, environ, is_rank):
        _tell(one, url.shown, say)


def _tell(one: Prefetch, remote: str, say: Say) -> None:
    begin = f"note: {environment.PACK.name}:"
    if one.before is not None:
        say(f"warning: {environment.PACK.name}: the last time {one.before.text}")
    if one.did == "started":
        say(f"{begin} process {one.pid} pulls {one.name} from {remote}", f"{begin} {one.name}")
    elif one.did == "joined":
        say(f"{begin} another process pulls {one.name} from {remote}", f"{begin} {one.name}")
