"""`JitCache`: what is known of one software's cache of compiled code; the table of all is `layout.jit_caches`."""

from __future__ import annotations

from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Level = Literal["none", "arch", "python-cuda-arch"]
    """What is put between a cache's directory and the software's files, because the software's own names lack it:
    nothing; the devices' architecture (``sm_90``); Python's ABI, torch's CUDA and the architecture
    (``cp311-cu130-sm_90``)."""
    Kind = Literal["on", "named-only", "by-hand"]
    """Whether ``all`` sets the variables (``on``), or only the cache's own name does (``named-only``), or no variable
    moves this cache alone, and the program itself says where it is to be (``by-hand``)."""
    ColdStart = Literal["one compiles", "each compiles", "not known"]
    """What several processes do that find the same thing missing at once; none of them fails."""


class Unit(Value, kw_only=True):
    """What of a cache can be removed alone, so that the software makes it again and nothing else breaks."""

    pattern: str
    """Which paths are units, relative to the cache's directory (with its level, if it has one): components with ``*``,
    which stands for letters of one component, and not for a leading dot. With a ``/`` at the end a unit is a directory
    with all that is in it (``*/wp_*/``), else one file (``*.mlir``). What the last ``*`` stood for is the unit's
    stem."""
    companions: tuple[str, ...] = ()
    """What goes with a unit, relative to the directory in which the unit lies, with ``{stem}`` for the stem: patterns
    as above, of files or, with a ``/`` at the end, directories. A companion may be missing."""
    lock: str | None = None
    """The software's own lock of a unit, relative to the directory in which the unit lies, with ``{stem}``; None where
    it has none. It may be inside the unit."""
    lock_by: Literal["flock", "existence"] = "flock"
    """Whether the lock is held by `flock` on its file, which a killed process frees, or by the file's being there,
    which a killed process leaves behind."""
    not_units: tuple[str, ...] = ()
    """Names (the last component) that the pattern matches and that are no units, such as a directory of locks."""


class JitCache(Value, kw_only=True):
    """One software's cache: the variables that move it, the level it needs, what of it can be removed, and the source.

    A field says what was seen with the versions in ``versions``, or read in their source; ``source`` tells which.
    """

    name: str
    """What people call the cache: in ``--caches``, ``--cache`` and as its directory in ``<root>/jit``."""
    software: str
    """The distribution or program that reads the variables."""
    versions: str
    """The versions that were run or read."""
    variables: tuple[tuple[str, str], ...]
    """The variables that move the cache, with the value of each. The first one names the place, and decides: where the
    user has set it, none of the others is set. In a value ``{directory}`` stands for the cache's directory with its
    level, ``{deepgemm}`` for that of DeepGEMM's kernels, where the user has them or in the root; any other value is a
    companion setting, such as the one by which JAX leaves the directory's path out of its keys. Empty: no variable
    moves this cache alone."""
    also: tuple[str, ...] = ()
    """Other variables of the software by which a user may have chosen the place; where one is set, the first variable
    counts as set by the user."""
    kind: Kind = "on"
    """Whether ``--caches all`` is enough, or the name must be said."""
    reason: str = ""
    """Why the name must be said, or why no variable moves the cache. Empty for ``on``."""
    default: str
    """Where the software caches when no variable is set: a path with ``{home}``, ``{cache}`` (`XDG_CACHE_HOME`, else
    ``~/.cache``), ``{tmp}``, ``{user}``, ``{root}`` (gpucache's, as TorchInductor's directory) and ``*``; or words in
    parentheses."""
    appended: str = ""
    """What the software itself puts below the variable's value before its files: FlashInfer ``.cache/flashinfer``."""
    holds: str
    """What the cache holds, in a few words."""
    level: Level = "none"
    """What the software's own names lack."""
    units: tuple[Unit, ...]
    """How units are found. Empty: nothing may be removed alone."""
    staged: tuple[str, ...] = ()
    """Patterns, as those of units, of what the software writes before it is whole. A killed process leaves such. In
    these, ``{number}`` stands for digits."""
    dear: str = ""
    """Why units are only removed where the cache was named, by `prune --cache`, and neither by a limit nor `clean`."""
    bounded_by: str = ""
    """The variable by which the software itself keeps the cache small; empty where it never removes anything."""
    cold_start: ColdStart
    """What happens when several processes start cold."""
    mends_itself: bool | None
    """Whether a file that was cut or emptied is made again. False: every start fails on it, or uses it, until somebody
    removes the unit. None: not known."""
    moves: bool
    """Whether a directory that was moved to another path is still hit. False: all is compiled again."""
    moves_because: str = ""
    """What of an old path is in the cache, where it does not move."""
    needs_directory: bool = False
    """Whether the software does not make the directory, and caches nothing where it is missing."""
    needs_local: bool = False
    """Whether the directory must be on a file system of this node: on one that nodes share, the software's locks,
    links or renames fail in the way that ``source`` tells."""
    not_in_tmp: bool = False
    """Whether the software replaces values that begin with the temporary directory's path."""
    not_quoted: str = ""
    """Letters that the directory's path must not have, since the software writes it into build files, or gives it to a
    shell, without quoting: the program would fail."""
    expands_home: bool = False
    """Whether the software takes ``~`` at the beginning of a value for the home; else that is a directory ``~``."""
    read_at: Literal["import", "use", "not known"]
    """When the software reads the variable: as it is imported, so that only a launcher can set it, or at each use."""
    module: str = ""
    """The module whose import reads it; empty where it is read at each use."""
    source: str
    """Where each of this was read or seen."""

    @property
    def variable(self) -> str | None:
        """The variable that names the place; None where there is no such variable."""
        return self.variables[0][0] if self.variables else None
