"""The Triton plug-in: `TRITON_CACHE_MANAGER=gpucache.triton:DeviceCacheManager` compiles each kernel once per node.

Works with every Triton from 3.2 to 3.9 unpatched. It imports no Triton: the contract (`triton/runtime/cache.py` and
`compiler.compile` of 3.2.0 to 3.9.0) is a class with a base *named* ``CacheManager``, one object per key and lookup:
``get_group`` is asked first; on a miss come a ``put`` per stage and one ``put_group``, and Triton reads the paths that
``put`` returned again after that. Triton's own manager is taken from ``sys.modules`` where it should act.

Every failure of ours ends in a compile of this process's own, with one log warning: also a defect, which is no reason
for a kernel not to launch. That is why exceptions are caught here, in `gpucache.triton.staged` after a launch, in
`gpucache.triton.remember`, `gpucache.triton.closing_line` and in `gpucache.log`, without naming them, and nowhere else.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading

from gpucache import configuration, environment
from gpucache.directories.logging_as_set import log_as_set
from gpucache.disk.files import remove_tree
from gpucache.errors import CacheMissError
from gpucache.forks import after_fork, at_exit
from gpucache.kernels.group import STANDALONE
from gpucache.log import tell, warn_once
from gpucache.store.lookup import find
from gpucache.store.manifest import entry_path
from gpucache.store.names import stored_name, tritons_names
from gpucache.triton.knobs import bakes_paths, ignores_cache, overriding
from gpucache.triton.location import Location, locate, nowhere
from gpucache.triton.staged import Staged, finish_with

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from gpucache.store.fallback_entry import Did
    from gpucache.store.key_lock import KeyLock
    from gpucache.triton.recorder import Recorder
    from gpucache.triton.shared_kernel import SharedKernel
    from gpucache.triton.single_file import SingleFile
    from gpucache.triton.staged import Why

_locations: dict[str | None, Location] = {}
"""By the value of `TRITON_CACHE_DIR`."""
_last_resorts: list[str] = []
"""Directories in the temporary directory, each for a file that no staging area takes; they go at exit."""
_settling = threading.RLock()
_get = os.environ.get
_TRITON_DIRECTORY = environment.TRITON_DIRECTORY.name
_log = logging.getLogger("gpucache")


class CacheManager:
    """Triton looks for a base of this name."""

    __slots__ = ()


class DeviceCacheManager(CacheManager):
    """The cache of one key: a view in the device directory over the store that all processes of the node share.

    Beside any number of processes and threads. Reading takes no lock; a miss takes the key's lock, and whoever finds it
    taken waits for the entry instead of compiling, but never for long without a sign of life.

    Where Triton's own manager is to act, constructing one gives a `StockCacheManager`.
    """

    __slots__ = (
        "__weakref__",
        "_group",
        "_location",
        "_served",
        "_single",
        "_staged",
        "_view",
        "key",
    )

    key: str
    _location: Location
    _view: str
    """The key's directory in the device directory, whether it is there or not."""
    _staged: Staged | None
    """What this object has put, once it has put something or has missed."""
    _group: str | None
    """The metadata file by whose name the kernel's group was asked for; None for single files."""
    _served: str | None
    """The group that was a hit."""
    _single: SingleFile | None
    """The single file that was asked for last."""

    def __new__(
        cls, key: str, override: bool = False, dump: bool = False, location: Location | None = None
    ) -> DeviceCacheManager:
        """Make a manager of one key, or Triton's own in its place; ``location`` is where, if not by the environment."""
        if location is None:
            location = current_location()
        try:
            is_stocks = override or dump or location.mode == "stock" or bakes_paths()
        except Exception as error:
            location.degraded("a setting of Triton's cannot be read", error)
            is_stocks = False
        if is_stocks:
            return StockCacheManager.of(key, override, dump, location.recorder)
        self = object.__new__(cls)
        self.key = key
        self._location = location
        self._view = f"{location.views}/{key}"
        self._staged = self._group = self._served = self._single = None
        return self

    def __init__(
        self, key: str, override: bool = False, dump: bool = False, location: Location | None = None
    ) -> None:
        """Do nothing: `__new__`, which chooses the class, has made the whole object."""

    @property
    def is_hit(self) -> bool:
        """Whether the kernel that this object was asked for was there, or came while this process waited for it."""
        return self._served is not None

    # ---- groups: kernels

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths of a kernel's files, or None: then this process is to compile it.

        Raises:
            CacheMissError: there is none, and `GPUCACHE_REQUIRE_HIT=1` forbids to compile.
        """
        self._group = filename
        location = self._location
        recorder = location.recorder
        recipe = None if recorder is None else recorder.asked(sys._getframe(1), self.key)
        try:
            if location.mode == "private" or ignores_cache():
                return self._alone(filename)
            name = stored_name(filename)
            found = self._hit(name)
            if found is None:
                found = self._searched(name, sys._getframe(1))
            elif recipe is not None:
                self._keep(name, recipe)
        except CacheMissError:
            raise
        except Exception as error:
            self._failed(filename, error)
            return None
        if found is None:
            return None
        self._served = filename
        return found if name == filename else tritons_names(found, filename)

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """Publish what this object staged, now that the kernel is whole, and free the lock for those who wait."""
        try:
            staged = self._staging_area()
            staged.group = group
            if self._served is None and staged.shareable:
                frame = sys._getframe(1)
                self._shared_kernel(stored_name(filename)).publish(group, staged, frame)
        except Exception as error:
            self._location.degraded("the kernel cannot be published", error)
        self._put_is_over()

    # ---- files: stages of a kernel, shared libraries, autotune results

    def has_file(self, filename: str) -> bool:
        """Whether `get_file` has it (asked by Triton 3.0 and 3.1 only)."""
        return self.get_file(filename) is not None

    def get_file(self, filename: str) -> str | None:
        """The path of one file, staged or published; None for a miss."""
        if self._group is not None:  # a stage of this compile
            return None if self._staged is None else self._staged.path_of(filename)
        try:
            if overriding() or (self._location.mode == "private" and not self._location.fallback):
                return None
            self._single = self._new_single_file(stored_name(filename))
            if self._location.mode == "private":
                return self._read_single(self._single)
            return self._single.get() or self._read_single(self._single)
        except Exception as error:
            self._location.degraded("the cache cannot be used", error)
            return None

    def put(self, data: object, filename: str, binary: bool = True) -> str:
        """Stage one file; outside a compile publish it at once. The path can be opened now, and stays.

        Raises:
            OSError: it can be written nowhere; the message names every place.
        """
        content = data
        if not isinstance(content, bytes):
            content = str(data).encode(errors="surrogatepass")
        path = self._stage(filename, content)
        try:
            if self._location.mode == "private" or overriding():
                return path
            single = self._single_file(stored_name(filename))
            if single is None or self._staged is None:
                return path
            return single.put(self._staged)
        except Exception as error:
            self._location.degraded("the file cannot be published", error)
            return path

    def _single_file(self, filename: str) -> SingleFile | None:
        """The file, if it stands for itself: it was asked for alone, or its name says so. None for a kernel's stage."""
        if self._group is not None:
            return None
        if self._single is not None and self._single.filename == filename:
            return self._single
        if filename.endswith(STANDALONE):
            return self._new_single_file(filename)
        return None

    def _new_single_file(self, filename: str) -> SingleFile:
        # Imported late, as what a miss needs.
        from gpucache.triton.single_file import SingleFile

        return SingleFile(self._location, self.key, filename)

    # ---- looking

    def _searched(self, filename: str, frame: FrameType) -> dict[str, str] | None:
        """Look where a hit does not; a miss that finds nothing there begins the compile, which ``frame`` is to do."""
        kernel = self._shared_kernel(filename)
        found = kernel.search(frame)
        if found is not None:
            return found
        try:
            found = self._read_privately(self.key, kernel.of_fallback)
            if found is None:
                self._missed(filename, kernel.lock, kernel.why, frame)
                return None
        except BaseException:
            if kernel.lock is not None:
                kernel.lock.release()
            raise
        if kernel.lock is not None:
            kernel.lock.release()
        return found

    def _alone(self, filename: str) -> dict[str, str] | None:
        """Without a store: what the fallback has, for this process alone; else the compile begins."""
        found = None
        if not ignores_cache():
            found = self._read_privately(self.key, None)
        if found is None:
            self._missed(filename, None, self._why_not_asked())
            return None
        self._served = filename
        return tritons_names(found, filename)

    def _read_privately(self, store_key: str, of_fallback: Did | None) -> dict[str, str] | None:
        """Read an entry of the fallback that the own store cannot take, or was not asked to (``of_fallback``)."""
        if self._location.fallback is None or of_fallback not in (None, "disk"):
            return None
        from gpucache.triton.from_fallback import staged_from_fallback  # few processes have one

        return staged_from_fallback(self._location, store_key, self._staging_area())

    def _read_single(self, single: SingleFile) -> str | None:
        """As `_read_privately`, a file that stands for itself; its path."""
        found = self._read_privately(single.entry_key, single.of_fallback)
        return None if found is None else found[single.filename]

    def _failed(self, filename: str, error: Exception) -> None:
        """Go on alone after a failure, which is told; nothing here keeps a kernel from being compiled."""
        location = self._location
        location.degraded("the cache cannot be used", error)
        if location.require_hit:
            raise CacheMissError(filename.removesuffix(".json"), self.key, self._looked_at())
        try:
            self._missed(filename, None, "failed")
        except Exception as again:
            location.degraded("the miss cannot be counted", again)

    def _stage(self, filename: str, content: bytes) -> str:
        """Write a file to where Triton can read it again; the path.

        Raises:
            OSError: no place takes it.
        """
        try:
            return self._staging_area().stage(stored_name(filename), content)
        except Exception as error:
            self._location.degraded("the file cannot be staged", error)
            try:
                home = tempfile.mkdtemp(prefix="gpucache-")
                _last_resorts.append(home)
                path = os.path.join(home, stored_name(filename))
                with open(path, "wb") as file:
                    file.write(content)
            except OSError:
                raise error from None  # it names all places that were tried
            return path

    def _put_is_over(self) -> None:
        """Free the lock for those who wait, and see that what Triton is about to read is there."""
        staged = self._staged
        if staged is None:
            return
        for what in (staged.free, staged.rescue):
            try:
                what()
            except Exception as error:
                self._location.degraded("what is staged cannot be kept", error)

    def _shared_kernel(self, filename: str) -> SharedKernel:
        # Imported late: most processes hit, and never need what a miss needs.
        from gpucache.triton.shared_kernel import SharedKernel

        return SharedKernel(self._location, self.key, filename, lambda: self._hit(filename))

    def _keep(self, filename: str, recipe: bytes) -> None:
        """Give the entry that was hit its recipe, if it has none. Never raises: it is a hit all the same."""
        try:
            self._shared_kernel(filename).keep(recipe)
        except Exception as error:
            outcome = "the entry stays without one"
            self._location.degraded("a recipe cannot be kept", error, outcome)

    def _hit(self, filename: str) -> dict[str, str] | None:
        """The kernel in the device directory; straight code, since this is all that most processes ever ask."""
        location = self._location
        try:
            found = find(self._view, self.key, location.verify, location.boot, location.stamp_s)
        except OSError as error:
            location.without_view(error)
            return None
        if found is None:
            return None
        manifest, paths = found
        if manifest.facts.group != filename:
            return None
        location.stats.add("hits")
        if _log.isEnabledFor(logging.DEBUG):
            said = "hit: %s %s in %s"
            tell(logging.DEBUG, said, manifest.facts.kernel, self.key, self._view, key=self.key)
        return paths

    def _missed(
        self, filename: str, lock: KeyLock | None, why: Why, frame: FrameType | None = None
    ) -> None:
        """Count the miss, and begin the compile, during which ``lock`` is held.

        ``frame`` is that of Triton's `compile`; None where the store was not asked.
        """
        location = self._location
        location.stats.add("misses", now=True)
        if location.require_hit:
            kernel = filename.removesuffix(".json")
            raise CacheMissError(kernel, self.key, self._looked_at())
        if _log.isEnabledFor(logging.INFO):
            from gpucache.triton.miss_line import tell_miss  # few processes log

            tell_miss(location, self.key, filename, why, frame)
        self._staging_area().lock = lock

    def _looked_at(self) -> tuple[str, ...]:
        """Where the kernel of this key would be."""
        location = self._location
        looked = (f"{location.directory}/{self.key}", entry_path(location.root, self.key))
        if location.fallback is None:
            return looked
        return *looked, entry_path(location.fallback, self.key)

    def _why_not_asked(self) -> Why:
        """Why the cache is not asked at all, in one word."""
        if self._location.mode == "private":
            return "private"
        return "override" if overriding() else "always-compile"

    # ---- compiling

    def _staging_area(self) -> Staged:
        """The private directory in which this object stages what it puts, made on demand; it goes with the object."""
        if self._staged is None:
            shareable = self._location.mode == "shared" and not ignores_cache()
            self._staged = Staged(self._location, shareable)
            finish_with(self, self._staged)
        return self._staged


class StockCacheManager(DeviceCacheManager):
    """Triton's own manager of one key, where that is to act: nothing is shared, waited for or counted.

    What the program asks for is recorded all the same, where the user wants that.
    """

    __slots__ = ("_recorder", "_stock")

    _recorder: Recorder | None
    _stock: Any

    @classmethod
    def of(
        cls, key: str, override: bool, dump: bool, recorder: Recorder | None
    ) -> StockCacheManager:
        """The manager of a key, as Triton would have made it."""
        self = object.__new__(cls)
        self.key = key
        self._recorder = recorder
        stock = sys.modules["triton.runtime.cache"].FileCacheManager
        self._stock = stock(key, override=override, dump=dump)
        return self

    def get_group(self, filename: str) -> dict[str, str] | None:
        """As Triton's `FileCacheManager`."""
        if self._recorder is not None:
            self._recorder.asked(sys._getframe(1), self.key)
        found: dict[str, str] | None = self._stock.get_group(filename)
        return found

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """As Triton's `FileCacheManager`."""
        self._stock.put_group(filename, group)

    def get_file(self, filename: str) -> str | None:
        """As Triton's `FileCacheManager`."""
        found: str | None = self._stock.get_file(filename)
        return found

    def put(self, data: object, filename: str, binary: bool = True) -> str:
        """As Triton's `FileCacheManager`."""
        path: str = self._stock.put(data, filename, binary=binary)
        return path


def current_location() -> Location:
    """Where to cache, by what `TRITON_CACHE_DIR` says at this moment; settled once for each of its values."""
    directory = _get(_TRITON_DIRECTORY) or None
    location = _locations.get(directory)
    if location is None:
        with _settling:
            location = _locations.get(directory) or _settled_at_all(directory)
            _locations[directory] = location
    return location


def _settled_at_all(directory: str | None) -> Location:
    """Where to cache; where even that cannot be told, each kernel is compiled for this process alone."""
    try:
        location = _settled(directory)
        if environment.REMEMBER_KEY.read_or_default(configuration.environ()):
            # Imported late: only who asks for that pays.
            from gpucache.triton.remember import remember_key

            remember_key()
        return location
    except Exception as error:
        warn_once("the cache cannot be found", error)
        return nowhere(directory)


def _settled(directory: str | None) -> Location:
    environ = configuration.environ()
    log_as_set(environ)
    location = locate(directory, environ)
    said = "caching in %s, store in %s, mode %s"
    tell(logging.DEBUG, said, location.directory, location.root, location.mode)
    if os.isatty(2) and environment.SUMMARY.read_or_default(environ):
        # Imported late: a process that nobody looks at ends without a word.
        from gpucache.triton.closing_line import say_at_exit

        say_at_exit(location, environ)
    return location


def _remove_last_resorts() -> None:
    for home in _last_resorts:
        remove_tree(home)


at_exit(_remove_last_resorts)


@after_fork
def _after_fork_in_child() -> None:
    global _settling
    _settling = threading.RLock()
    _last_resorts.clear()  # they are the parent's
