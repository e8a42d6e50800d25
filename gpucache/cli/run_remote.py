"""What `gpucache run` does where a remote is set: it starts the courier ahead of the command's first miss.

And a pusher for what earlier commands have left. A rank that misses, or compiles, starts one itself; nothing here may
keep the command from running.
"""

from __future__ import annotations

from gpucache import environment
from gpucache.cli.failures import complain_of_defect
from gpucache.configuration import for_child
from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def start_courier(environ: Mapping[str, str]) -> None:
    """Start the courier of this node for the settings of a command, unless one runs, or none could be asked.

    What makes no sense is told by the plug-in's log, where kernels are missed. Never raises.
    """
    if _shares_nothing(environ):
        return
    from gpucache.remote.ask import start_ahead
    from gpucache.remote.setting import reading_for_launch

    try:
        root = environ[environment.ROOT.name]
        reading = reading_for_launch(root, environ)
        if reading is not None:
            start_ahead(reading, for_child(environ))
    except (GpuCacheError, OSError):
        return  # a rank tries again, and tells
    except Exception:
        complain_of_defect()


def start_pusher(environ: Mapping[str, str]) -> None:
    """Start a pusher for what waits in the outbox, if something does: what was compiled last may have found none.

    Never raises.
    """
    if _shares_nothing(environ):
        return
    from gpucache.disk.lock_place import LockPlace
    from gpucache.remote import outbox
    from gpucache.remote.write_behind import write_behind

    try:
        root = environ[environment.ROOT.name]
        if not outbox.own(root):
            return
        writing = write_behind(root, LockPlace(root), environ)
        if writing is not None:
            writing.wake_ahead()
    except (GpuCacheError, OSError):
        return  # the next compile tries again
    except Exception:
        complain_of_defect()


def _shares_nothing(environ: Mapping[str, str]) -> bool:
    """Whether the user has turned the plug-in off, or its sharing."""
    return environment.DISABLE.read(environ) or environment.SHARE.read_or_default(environ) is False
