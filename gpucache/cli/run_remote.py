"""What `gpucache run` does where a remote is set: it starts the courier ahead of the command's first miss.

A rank that misses starts one itself, and waits meanwhile; nothing here may keep the command from running.
"""

from __future__ import annotations

from gpucache import environment
from gpucache.cli.terminal import complain_of_defect
from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def start_courier(environ: Mapping[str, str]) -> None:
    """Start the courier of this node for the environment of a command, unless one runs, or none could be asked.

    What makes no sense is told by the plug-in's log, where kernels are missed. Never raises.
    """
    if environment.DISABLE.read(environ) or environment.SHARE.read_or_default(environ) is False:
        return
    from gpucache.remote.ask import start_ahead
    from gpucache.remote.setting import reading_for_launch

    try:
        root = environ[environment.ROOT.name]
        reading = reading_for_launch(root, environ)
        if reading is not None:
            start_ahead(reading, environ)
    except (GpuCacheError, OSError):
        return  # a rank tries again, and tells
    except Exception:
        complain_of_defect()
