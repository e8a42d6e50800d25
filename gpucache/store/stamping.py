"""Stamp a use where the mount sets no times: the manifest is written anew, which gives it the time of now.

Else what is used would look unused there, and be evicted under its readers.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

from gpucache.disk.sharing import GROUP, modes_like, set_mode
from gpucache.layout.keys import ASIDE
from gpucache.store.condemned import is_going, reprieve
from gpucache.store.manifest import MANIFEST, Manifest


def written_anew(directory: str, manifest: Manifest) -> bool:
    """Write the manifest of a directory anew, if this user has written it; return whether the entry stays.

    Beside a removal as `stock.describe`: what is condemned by now is being removed, and a removal that condemns it
    later sees the new manifest, and puts back the rest. Where nothing can be written the entry looks old, and stays.
    """
    path = f"{directory}/{MANIFEST}"
    temporary = None
    try:
        modes = modes_like(directory)
        if os.lstat(path).st_uid != os.geteuid() and modes != GROUP:
            return True
        fd, temporary = tempfile.mkstemp(prefix=ASIDE, dir=os.path.dirname(directory))
        set_mode(fd, modes.file)
        with os.fdopen(fd, "wb") as file:
            file.write(manifest.encoded())
        os.replace(temporary, path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
    if is_going(directory):
        return False
    reprieve(directory)  # its maker was killed before the last step
    return True
