"""The functions that recipes name: their modules are imported, which runs the code of these modules.

A module is taken from ``sys.path`` as the caller has it. Where it is not there, the recorded file is executed, but only
a file that nobody else could have written; a source that was kept with the recipe only where the caller says that
recipes are vetted; a program's own file (``__main__``) only where the caller names it, since importing a script that
has no guard runs it. Imports no Triton.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import linecache
import os
import stat
import sys
from types import ModuleType
from typing import NamedTuple

from gpucache.disk.vetting import Trust, vet
from gpucache.errors import GpuCacheError, ProvisionError, UnsafeDirectoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from gpucache.kernels.recipe import Function, Recipe

_MOST_WRAPPERS = 16
_MOST_BYTES = 2**24
"""No source file is longer."""
_MAIN = ("__main__", "__mp_main__")
"""How the program's own file is called, and how `multiprocessing` calls it in a process that it spawns."""


class CannotImportError(GpuCacheError, ImportError):
    """A function that a recipe names cannot be had; ``reason`` says why, in a line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "", reason)
        self.reason = reason


class Place(NamedTuple):
    """What is executed so that a recorded function is there: a module, else a file, or a source that was kept."""

    module: str
    file: str | None = None
    source: str | None = None

    @property
    def package(self) -> str:
        """The name of the topmost package; ``""`` where a file or a source is executed in any case."""
        if self.source is not None or self.module in _MAIN:
            return ""
        return self.module.partition(".")[0]


def places(recipe: Recipe) -> tuple[Place, ...]:
    """All that is executed for a recipe: first for its function, then for what is among its constants and options."""
    found = [Place(recipe.function.module, recipe.function.file, recipe.source)]
    for _, value in recipe.constants:
        found.extend(_named_in(value))
    for value in recipe.options.values():
        found.extend(_named_in(value))
    for value in recipe.signature.values():
        found.extend(_named_in(value))
    return tuple(dict.fromkeys(found))


def _named_in(encoded: Any) -> Iterator[Place]:
    """The places of the functions and classes in an encoded value (`gpucache.kernels.encoding.Kind`)."""
    pending = [encoded]
    while pending:
        value = pending.pop()
        if type(value) is list:
            pending.extend(value)
        if type(value) is not dict:
            continue
        for kind, content in value.items():
            if kind == "function":
                yield Place(content[0], content[2])
                continue
            if kind in ("enum", "namedtuple", "dataclass"):
                yield Place(content[0])
            pending.append(content)


class Functions:
    """The functions of one process, each place executed at most once. Not for several threads."""

    def __init__(
        self,
        is_kernel: Callable[[object], bool],
        trust: Trust,
        main: str | None = None,
        sources: bool = False,
    ) -> None:
        """See `load`.

        ``is_kernel`` tells what is a function of Triton's; ``trust`` whose files are executed; ``main`` is the
        program's own file, by which kernels of ``__main__`` are found; ``sources`` is whether kept sources are
        executed, which is for whoever knows that nobody else has written the recipes.
        """
        self._is_kernel = is_kernel
        self._trust = trust
        self._main = None if main is None else os.path.abspath(main)
        self._sources = sources
        self._loaded: dict[Place, ModuleType | CannotImportError] = {}

    def load(self, place: Place) -> ModuleType:
        """The module of a place, executed now unless this has been tried before. It may do anything.

        Raises:
            CannotImportError: it is not there, may not be executed, or has raised; the second time at once.
        """
        found = self._loaded.get(place)
        if found is None:
            try:
                found = self._load(place)
            except CannotImportError as error:
                found = error
            self._loaded[place] = found
        if isinstance(found, CannotImportError):
            raise found
        return found

    def find(self, function: Function, source: str | None = None) -> Any:
        """The function of Triton's that a recipe names, without `Autotuner`, `Heuristics` and the like around it.

        Raises:
            CannotImportError: there is none by this name now.
        """
        if "<locals>" in function.qualname:
            reason = f"{function.qualname} is made inside a function, where no import finds it"
            raise CannotImportError(reason)
        place = Place(function.module, function.file, source)
        module = self.load(place)
        try:
            return self._kernel_in(module, function.qualname)
        except CannotImportError:
            other = self._other_file(place, module)
            if other is None:
                raise
            return self._kernel_in(other, function.qualname)

    def find_class(self, module: str, qualname: str) -> type:
        """The class that a recipe names.

        Raises:
            CannotImportError: there is none by this name now.
        """
        found = _attribute(self.load(Place(module)), qualname)
        if not isinstance(found, type):
            raise CannotImportError(f"{module}.{qualname} is no class now")
        return found

    # ---- how

    def _load(self, place: Place) -> ModuleType:
        if place.source is not None:
            return self._of_source(place)
        if place.file is not None and _is_interactive(place.file):
            raise CannotImportError(
                "it was made in a notebook or on stdin, which cannot be imported"
            )
        if place.module in _MAIN:
            return self._of_main(place)
        try:
            return importlib.import_module(place.module)
        except ModuleNotFoundError as error:
            is_missing = error.name is not None and f"{place.module}.".startswith(f"{error.name}.")
            if not is_missing or place.file is None:
                raise _raised(place.module, error) from error
        except BaseException as error:
            raise _raised(place.module, error) from error
        return self._of_file(place.module, place.file)

    def _of_main(self, place: Place) -> ModuleType:
        main = self._main
        if main is None:
            reason = f"it is of the program's own file {place.file}, which is run only where --main names it"
            raise CannotImportError(reason)
        if place.file is not None and os.path.basename(place.file) != os.path.basename(main):
            raise CannotImportError(f"it is of {place.file}, and --main names {main}")
        known = sys.modules.get("__mp_main__")
        if known is not None and getattr(known, "__file__", None) == main:
            return known
        # As Python does for a script: its neighbours can be imported.
        sys.path.insert(0, os.path.dirname(main))
        module = self._executed("__mp_main__", main, _text_of(main, None))
        _call_main(module, self._is_kernel)
        return module

    def _of_file(self, module: str, file: str) -> ModuleType:
        return self._executed(module, file, _text_of(file, self._trust))

    def _of_source(self, place: Place) -> ModuleType:
        if not self._sources:
            reason = "its source is kept with a recipe that somebody else may have written"
            raise CannotImportError(reason)
        source = place.source or ""
        file = place.file or f"<{place.module}>"
        # Triton asks `inspect` for the source of a function, and that asks here where there is no such file.
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        return self._executed(place.module, file, source)

    def _executed(self, name: str, file: str, source: str) -> ModuleType:
        """Execute the text of a module under a name, by which others can import it from now on."""
        module = ModuleType(name)
        module.__file__ = file
        # `inspect` asks for the loader before it believes that a file which is not there has a source.
        loader = importlib.machinery.SourceFileLoader(name, file)
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader, origin=file)
        module.__loader__ = loader
        before = sys.modules.get(name)
        sys.modules[name] = module
        try:
            code = compile(source, file, "exec", dont_inherit=True)
            exec(code, module.__dict__)
        except BaseException as error:
            sys.modules.pop(name, None)
            if before is not None:
                sys.modules[name] = before
            raise _raised(file, error) from error
        if before is not None:
            sys.modules[name] = before  # it has users; what was executed is known to this object
        return module

    def _other_file(self, place: Place, module: ModuleType) -> ModuleType | None:
        """The recorded file where the module of that name is another one's; None where it is the same, or nothing."""
        file = place.file
        if file is None or place.source is not None or place.module in _MAIN:
            return None
        here = getattr(module, "__file__", None)
        if here is not None and os.path.realpath(here) == os.path.realpath(file):
            return None
        if not os.path.exists(file):
            return None
        return self._of_file(place.module, file)

    def _kernel_in(self, module: ModuleType, qualname: str) -> Any:
        value = _attribute(module, qualname)
        for _ in range(_MOST_WRAPPERS):
            if self._is_kernel(value):
                return value
            value = getattr(value, "fn", None)
            if value is None:
                break
        raise CannotImportError(f"{module.__name__}.{qualname} is no function of Triton's now")


def _attribute(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for name in qualname.split("."):
        try:
            found = getattr(found, name)
        except BaseException:
            raise CannotImportError(f"{module.__name__} has no {qualname} now") from None
    return found


def _call_main(module: ModuleType, is_kernel: Callable[[object], bool]) -> None:
    """Call the program's own file, and its kernels, as the program does: these names are in some keys and recipes.

    The text of a function in a tuple is ``JITFunction(__main__:name)`` (`triton/runtime/jit.py`, 3.6.0 and 3.9.0).
    """
    for value in list(vars(module).values()):
        for _ in range(_MOST_WRAPPERS):
            if value is None or is_kernel(value):
                break
            value = vars(value).get("fn") if hasattr(value, "__dict__") else None
        if value is not None and is_kernel(value) and value.__module__ == "__mp_main__":
            value.module = value.__module__ = value.fn.__module__ = "__main__"
    module.__name__ = "__main__"


def _is_interactive(file: str) -> bool:
    """Whether a file is what Python or IPython calls what was typed."""
    return file.startswith("<") or "/ipykernel_" in file


def _raised(what: str, error: BaseException) -> CannotImportError:
    """What is said of a module that raised: this may be anything, SystemExit too."""
    return CannotImportError(f"{what}: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and the first line of its text, whatever its class does."""
    try:
        lines = str(error).strip().splitlines()
    except BaseException:
        lines = []
    name = type(error).__name__
    return f"{name}: {lines[0][:300]}" if lines else name


# ---- files that may be executed


def _text_of(file: str, trust: Trust | None) -> str:
    """The text of a source file; with ``trust``, only if nobody else could have written it.

    Raises:
        CannotImportError: it cannot be read, or somebody else could have written it.
    """
    try:
        if trust is not None:
            _vet_way(file, trust)
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            found = os.fstat(opened.fileno())
            refused = _refused(found, trust)
            if refused is not None:
                raise CannotImportError(f"{file} {refused}, and is not executed")
            content = opened.read(_MOST_BYTES + 1)
    except (OSError, ProvisionError) as error:
        raise CannotImportError(f"{file}: {_cause(error)}") from error
    if len(content) > _MOST_BYTES:
        raise CannotImportError(f"{file} is longer than {_MOST_BYTES >> 20} MiB")
    try:
        return importlib.util.decode_source(content)
    except (SyntaxError, ValueError) as error:
        raise _raised(file, error) from error


def _cause(error: OSError | ProvisionError) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else error.problem


def _vet_way(file: str, trust: Trust) -> None:
    """Vet the directories on the way to a file, and to what it is a link to.

    Raises:
        CannotImportError: one of them is another user's, or everybody may write it.
    """
    try:
        for path in dict.fromkeys((os.path.abspath(file), os.path.realpath(file))):
            vet(os.path.dirname(path), trust)
    except UnsafeDirectoryError as error:
        raise CannotImportError(f"{file} is not executed: {error.problem}") from error
    if os.path.islink(file) and not trust.covers(os.lstat(file).st_uid):
        raise CannotImportError(f"{file} is a link of another user's, and is not executed")


def _refused(found: os.stat_result, trust: Trust | None) -> str | None:
    """Why an open file may not be executed, if so."""
    if not stat.S_ISREG(found.st_mode):
        return "is no plain file"
    if trust is None:
        return None
    if not trust.covers(found.st_uid):
        return f"belongs to uid {found.st_uid}"
    if found.st_mode & stat.S_IWOTH and not trust.world_writable:
        return "may be written by everybody"
    return None
