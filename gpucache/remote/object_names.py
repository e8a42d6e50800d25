"""What objects are called on a remote: a pack by its name, a single entry by its Triton and its key.

```
v1/packs/<name>
v1/<Triton version>/<KEY[:2]>/<KEY>
```

A new format is a new first component.
"""

from __future__ import annotations

import re

from gpucache.layout.keys import STORE_KEY

FORMAT = "v1"
PACKS = f"{FORMAT}/packs/"
"""How the names of all packs begin."""
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
A_NAME = (
    "up to 100 letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"
)
"""What a pack may be called, in words."""


def is_pack_name(name: str) -> bool:
    """Whether a pack may have this name, which is one plain component of a path and of a URL."""
    return _COMPONENT.fullmatch(name) is not None and "+" not in name


def pack_object(name: str) -> str:
    """The name of the object in which a pack lies.

    Raises:
        ValueError: no pack may have this name; the message says what a name is.
    """
    if not is_pack_name(name):
        raise ValueError(A_NAME)
    return f"{PACKS}{name}"


def entry_object(triton_version: str, store_key: str) -> str:
    """The name of the object in which a single entry lies.

    Raises:
        ValueError: that is no version, or no key of an entry.
    """
    if not _COMPONENT.fullmatch(triton_version) or triton_version == "packs":
        raise ValueError("a version of Triton, such as 3.6.0")
    if not STORE_KEY.fullmatch(store_key):
        raise ValueError("a key of an entry")
    return f"{FORMAT}/{triton_version}/{store_key[:2]}/{store_key}"


def pack_name(object_name: str) -> str | None:
    """The name of the pack that lies in an object; None where the object is no pack."""
    name = object_name.removeprefix(PACKS)
    if name == object_name or not is_pack_name(name):
        return None
    return name
