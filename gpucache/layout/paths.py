"""Where everything is on disk, as pure functions of the root.

<root>                        argument, else $GPUCACHE_DIR, else $TORCHINDUCTOR_CACHE_DIR, else torch's default
├── CACHEDIR.TAG
├── gpucache.toml             the root's own settings, which people write
├── triton/<name>/<KEY>/…     one directory per device
├── members/<uid>/            of a root of a group, on a mount without ACLs: that member's Inductor and JIT caches
├── jit/<cache>/[<level>/]…   what other JIT compilers write, where they were told to (`layout.jit_caches`)
└── gpucache/v1/              what gpucache alone writes; a new format is a new directory
    ├── sharing.json          with whom the root is shared
    ├── devices/<host>.json   the devices as provisioned on that host
    ├── store/<KEY[:2]>/<KEY>/…   one copy of each entry, hard-linked into the device directories
    ├── locks/                a lock for each key that is being compiled, and one for provisioning
    ├── tmp/                  what is not yet published, and second names of what is being packed
    ├── quarantine/           damaged entries, which nothing reads
    ├── stats/                counters, and the size of the store
    ├── foreign/              device directories elsewhere that have views of the store: outside the root, or deep in it
    ├── mounts/<node>.json    what the root's mount can do, as tried on that node
    ├── recipes/              what `gpucache run --warm auto` recorded, and which keys were made of recipes
    ├── outbox/<node>/<KEY>   which entries that node is still to give to the remote
    ├── pulled/               which entries packs have brought
    ├── tritons/<digest>.json the key that an installation of Triton makes of its files
    ├── gpucache.toml.json    the root's settings as parsed, for processes that start fast
    ├── fresh/<name>/         a root of its own for one run (`gpucache run --fresh`); <name>.json says who uses it
    └── packs/numbers.json    the highest number of each pack that was pulled or unpacked here

Nothing of that, nor of ours beside it, grows without bound. Who adds a file says here what bounds it:

- Entries with their views, in the root and outside: `GPUCACHE_MAX_SIZE`, ``prune``. Views that have lost their
  entry, and what stock Triton made: ``prune``, ``clean``; the limit never touches these.
- ``quarantine``: counts to that limit, and is the first to go; ``prune``, after a week at the latest.
- Half-removed and aside directories: the next count of the limit (`store.leftovers`), ``prune``.
- TorchInductor's code and graphs: `GPUCACHE_INDUCTOR_MAX_SIZE`, ``prune --inductor``; unasked only ``clean``, as its
  headers, its timings and what else its names tell.
- ``members``: each is to Inductor and other JITs what the root is, and bounded as that is.
- ``tmp``, and staging in ``/dev/shm``: whoever stages there next; at once by a lock, after an hour by age, of another
  node after a day.
- ``locks``: a lock's file goes with its holder, of a killed one with the next holder, or by ``prune``; directories of
  locks in ``/dev/shm`` once their root is gone, tokens after 30 days (`disk.lock_token`); what is asked of a remote
  by, after a day without use (`remote.meeting`).
- ``stats``: folded by whoever comes by, hours for 14 days, half a MiB for each node (`store.counter_fold`); one mark of
  half a MiB (`store.mark`); 128 files of what was found last, the oldest dropped (`store.last_findings`).
- ``devices``: 30 days without use (`disk.record_use`); ``mounts``: 90 days.
- ``foreign``: 1,000 for each user, the oldest dropped; what is gone is forgotten by a count of the limit, or ``prune``.
- ``tritons``: 32, and 30 days without use (`kernels.kept_key`).
- ``recipes``: 20 files, the oldest dropped by the next ``run --warm`` (`warm.ahead.recordings`).
- ``outbox``: 1,000 markers for each node, the oldest dropped; a node's that is gone, after 7 days (`remote.outbox`).
- ``pulled``: 32 files, the oldest dropped (`store.pulled`).
- ``gpucache.toml.json``: one file, replaced when the root's settings change (`configuration.form`).
- ``packs``: one file of 1,000 names, those that were seen first dropped (`transfer.seen_numbers`).
- ``fresh``: a process that waits for the run's end; after a kill whoever comes by, of another node after a day
  (`upkeep.fresh_runs`).
- ``jit``: `GPUCACHE_JIT_MAX_SIZE`, ``prune --cache``, ``clean``; by nothing else of gpucache's.
- ``gpucache-told-<uid>`` in ``/dev/shm`` or ``/tmp``: a day (`once`).
"""

from __future__ import annotations

import os

from gpucache.environment import INDUCTOR_ROOT, ROOT
from gpucache.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    Part = Literal[
        "devices",
        "store",
        "locks",
        "tmp",
        "quarantine",
        "stats",
        "mounts",
        "foreign",
        "tritons",
        "recipes",
        "outbox",
        "pulled",
        "packs",
        "fresh",
    ]

_PROVISIONED: tuple[Part, ...] = ("devices", "locks", "tmp")
_FILLED: tuple[Part, ...] = (
    *("store", "quarantine", "stats"),
    *("mounts", "foreign", "tritons", "recipes"),
    *("outbox", "pulled", "packs", "fresh"),
)


def resolve_root(
    root: str | os.PathLike[str] | None,
    environ: Mapping[str, str],
) -> str:
    """The absolute root: the argument, else the environment's, else torch's default. ``""`` counts as unset.

    Raises:
        ConfigurationError: the root is relative to a directory that is gone, or there is no temporary directory, or a
            path makes no sense.
    """
    argument = "" if root is None else os.fspath(root)
    chosen = argument or ROOT.read(environ) or INDUCTOR_ROOT.text(environ)
    return absolute(chosen or default_root(environ))


def root_for_launch(environ: Mapping[str, str]) -> str:
    """The absolute root of a kernel launch: as `resolve_root`, but a `GPUCACHE_DIR` without sense is told, and unset.

    Raises:
        ConfigurationError: the root is relative to a directory that is gone, or there is no temporary directory.
    """
    chosen = ROOT.read_or_default(environ) or INDUCTOR_ROOT.text(environ)
    return absolute(chosen or default_root(environ))


def absolute(path: str) -> str:
    """The path, made absolute from the current directory.

    Raises:
        ConfigurationError: the path is relative, and the current directory is gone; or it has a NUL, which no path has.
    """
    if "\0" in path:
        raise ConfigurationError(ROOT.name, path, "a path: it has a NUL")
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise ConfigurationError(
            ROOT.name, path, "an absolute path, and the current directory is gone"
        ) from None


def default_root(environ: Mapping[str, str]) -> str:
    """``<temporary directory>/torchinductor_<user>``, exactly as torch names it.

    After torch 2.13.0 `_inductor/runtime/cache_dir_utils.py` `default_cache_dir`: nine characters of a user name
    become ``_``, and a user id without a passwd entry is named ``uid_<id>``. The temporary directory is
    `tempfile.gettempdir()`, so it is the process's own whatever ``environ`` holds.

    Raises:
        ConfigurationError: there is no temporary directory.
    """
    import tempfile  # costs more to import than all of this module

    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigurationError(
            "TMPDIR",
            environ.get("TMPDIR", ""),
            f"usable ({error.strerror})",
            f"set {ROOT} to a directory that can be written, such as a volume, or TMPDIR",
        ) from None
    user = user_name(environ)
    import re  # most roots are named

    user = re.sub(r'[\\/:*?"<>|]', "_", user)
    return os.path.join(directory, f"torchinductor_{user}")


def user_name(environ: Mapping[str, str]) -> str:
    """This user's name as torch and others put it into paths: in the order of `getpass.getuser`, which they ask."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        if user := environ.get(name):
            return user
    if not hasattr(os, "getuid"):
        return "unknown_user"
    try:
        import pwd

        return pwd.getpwuid(os.getuid())[0]
    except (KeyError, ImportError, OSError):
        return f"uid_{os.getuid()}"


def triton_directory(root: str) -> str:
    """The directory that holds the device directories."""
    return f"{root}/triton"


def is_device_name(name: str) -> bool:
    """Whether a device directory may have this name: NVML's number of a GPU (``3``), or of a GPU and a slot (``1.2``).

    Written without a pattern, which each worker would have to compile.
    """
    numbers = name.split(".")
    if len(numbers) > 2:
        return False
    return all(map(_is_short_number, numbers))


def _is_short_number(text: str) -> bool:
    is_number = text.isascii() and text.isdigit()
    return is_number and len(text) <= 9


_NO_DEVICE = "None"
"""What torch calls the directory of no device in particular."""


def is_device_directory_name(name: str) -> bool:
    """Whether a directory in a root's ``triton`` is a device's by its name; torch has one for no device."""
    return is_device_name(name) or name == _NO_DEVICE


def device_directory(root: str, name: str) -> str:
    """A device's Triton cache directory."""
    return f"{triton_directory(root)}/{name}"


def members_directory(root: str) -> str:
    """The directory that holds the members' own directories (`member_directory`)."""
    return f"{root}/members"


def member_directory(root: str, uid: int) -> str:
    """Where one member of a group has Inductor's and other JITs' caches, if the root's mount has no ACLs.

    Programs that know no mode but their umask's would write there what other members cannot use, and then fail. For
    Inductor and the JITs this directory is what the root is elsewhere: ``fxgraph/``, ``jit/`` and so on are in it.
    """
    return f"{members_directory(root)}/{uid}"


def below_base(path: str) -> str:
    """A path below the root as torch knows it, which takes a member's own directory for the root.

    That is the same path, unless it leads into such a directory.
    """
    parts = path.split("/", 2)
    is_members = parts[0] == "members" and len(parts) == 3 and parts[1].isdigit()
    return parts[2] if is_members else path


def in_root(directory: str, root: str) -> str:
    """A device directory by its path in the root, where torch has named it in a member's own directory.

    Torch, to which that directory is the root, makes its device directories' paths of it; their views are everybody's.
    """
    if not directory.startswith(f"{members_directory(root)}/"):
        return directory
    below = below_base(directory[len(root) + 1 :])
    return f"{root}/{below}" if below.startswith("triton/") else directory


def jit_directory(base: str, cache: str | None = None, level: str | None = None) -> str:
    """The directory of all JIT caches below a root, or below a member's own directory in a root.

    With the name of a cache (`gpucache.layout.jit_caches`) that cache's directory, with a level (``sm_90``) the part
    of it to which the software's variable is set.
    """
    parts = [base, "jit"]
    if cache is not None:
        parts.append(cache)
    if level is not None:
        parts.append(level)
    return "/".join(parts)


def ours(root: str, part: Part | None = None, *below: str) -> str:
    """The path ``<root>/gpucache/v1``; with a part, that part's path, or the path of something below the part."""
    directory = f"{root}/gpucache/v1"
    if part is None:
        return directory
    return "/".join((directory, part, *below))


def root_of_stored(path: str) -> str:
    """The root in whose store something is, by its path."""
    return path.rpartition("/gpucache/v1/store/")[0]


def root_of_recorded(path: str) -> str:
    """The root in which a file of recipes was recorded, by its path; empty for any other file."""
    return path.rpartition("/gpucache/v1/recipes/")[0]


def root_of_fresh(path: str) -> str:
    """The root in which a root of one run is, by its path; empty for any other root."""
    return path.rpartition("/gpucache/v1/fresh/")[0]


def provisioned_directories(root: str) -> tuple[str, ...]:
    """The directories that provisioning makes below a root, but for those of the devices; outermost first."""
    outer = (triton_directory(root), f"{root}/gpucache", ours(root))
    inner = tuple(ours(root, part) for part in _PROVISIONED)
    return outer + inner


def our_directories(root: str) -> tuple[str, ...]:
    """All directories below a root that only gpucache writes, and ``triton``; outermost first."""
    filled = tuple(ours(root, part) for part in _FILLED)
    return provisioned_directories(root) + filled


MANIFEST = "__entry__.json"
"""The manifest of an entry, in its directory (`store.manifest`)."""
RECIPE = "__recipe__.json"
"""The file of a stored entry by which its kernel can be compiled again (`store.recipe_file`)."""
RECORD_SUFFIX = ".json"


def record_path(root: str, host: str) -> str:
    """The record of a host's devices; characters that no host name should have become ``_``."""
    name = "".join(letter if _is_plain(letter) else "_" for letter in host)
    return ours(root, "devices", f"{name}{RECORD_SUFFIX}")


def _is_plain(letter: str) -> bool:
    return letter in "._-" or (letter.isascii() and letter.isalnum())


MARK = "sharing.json"
"""The name of the file that says with whom a root is shared (`disk.sharing`)."""


def mark_path(root: str) -> str:
    """The file that says with whom a root is shared; a private root needs none."""
    return f"{ours(root)}/{MARK}"


TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache made by gpucache.
# For information about cache directory tags see https://bford.info/cachedir/
"""
"""The content of the tag in a root that `gpucache provision` made."""


def tag_path(root: str) -> str:
    """The tag that tells backup programs to pass the cache over (https://bford.info/cachedir/)."""
    return os.path.join(root, "CACHEDIR.TAG")


SETTINGS = "gpucache.toml"
"""How each file of settings is called: the system's, a user's, a root's."""


def settings_path(root: str) -> str:
    """The file of a root's own settings."""
    return f"{root}/{SETTINGS}"


def parsed_settings_path(root: str) -> str:
    """The same as parsed."""
    return f"{ours(root)}/{SETTINGS}.json"


def host_name() -> str:
    """This node's name, as the kernel has it."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    return os.environ.get("COMPUTERNAME", "localhost")
