"""What objects are called on a remote: a pack by its name, a single entry by its Triton and its key.

```
v1/packs/<name>
v1/<Triton version>/<KEY[:2]>/<KEY>
```

A new format is a new first component.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gpucache.archive.statement import A_NAME, is_name
from gpucache.layout.keys import STORE_KEY

FORMAT = "v1"
PACKS = f"{FORMAT}/packs/"
"""How the names of all packs begin."""
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
A_VERSION = "a version of Triton, such as 3.6.0"


def is_version(text: str) -> bool:
    """Whether a Triton may have this version, which is one plain component of a path and of a URL."""
    return _COMPONENT.fullmatch(text) is not None and text != "packs"


def pack_object(name: str) -> str:
    """The name of the object in which a pack lies.

    Raises:
        ValueError: no pack may have this name; the message says what a name is.
    """
    if not is_name(name):
        raise ValueError(A_NAME)
    return f"{PACKS}{name}"


def entry_object(triton_version: str, store_key: str) -> str:
    """The name of the object in which a single entry lies.

    Raises:
        ValueError: that is no version, or no key of an entry.
    """
    if not is_version(triton_version):
        raise ValueError(A_VERSION)
    if not STORE_KEY.fullmatch(store_key):
        raise ValueError("a key of an entry")
    return f"{FORMAT}/{triton_version}/{store_key[:2]}/{store_key}"


def pack_name(object_name: str) -> str | None:
    """The name of the pack that lies in an object; None where the object is no pack."""
    name = object_name.removeprefix(PACKS)
    if name == object_name or not is_name(name):
        return None
    return name


class EntryName(NamedTuple):
    """What the name of a single entry's object says."""

    triton_version: str
    store_key: str


def entry_name(object_name: str) -> EntryName | None:
    """The entry that lies in an object; None where the object is no single entry."""
    version, _, rest = object_name.removeprefix(f"{FORMAT}/").partition("/")
    said = EntryName(version, rest.rpartition("/")[2])
    try:
        is_entry = entry_object(*said) == object_name
    except ValueError:
        return None
    return said if is_entry else None


def entries_prefix(triton_version: str | None) -> str:
    """How the names of the single entries of one Triton begin, or without a version those of all, and of packs.

    Raises:
        ValueError: that is no version.
    """
    if triton_version is None:
        return f"{FORMAT}/"
    if not is_version(triton_version):
        raise ValueError(A_VERSION)
    return f"{FORMAT}/{triton_version}/"
