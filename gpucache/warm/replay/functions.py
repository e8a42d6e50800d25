"""The functions that recipes name: their modules are imported, which runs the code of these modules.

A module is taken from ``sys.path`` as the caller has it. Where it is not there, the recorded file is executed, but only
a file that nobody else could have written; a source that was kept with the recipe only where the caller says that
recipes are vetted; a program's own file (``__main__``) only where the caller names it, since importing a script that
has no guard runs it. Imports no Triton.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import linecache
import os
import sys
from types import ModuleType
from typing import NamedTuple

from gpucache.disk.files import inside
from gpucache.disk.vetting import Trust
from gpucache.warm.replay.inductor import leave_driver_alone
from gpucache.warm.replay.source_files import CannotImportError, one_line, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from gpucache.kernels.recipe import Function, Recipe

_MOST_WRAPPERS = 16
_MAIN = ("__main__", "__mp_main__")
"""How the program's own file is called, and how `multiprocessing` calls it in a process that it spawns."""


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
        all_kernels: Callable[[], Iterable[Any]],
        trust: Trust,
        main: str | None = None,
        sources: bool = False,
        root: str | None = None,
    ) -> None:
        """See `load`.

        ``is_kernel`` tells what is a function of Triton's, ``all_kernels`` gives all that there are; ``trust`` says
        whose files are executed; ``main`` is the program's own file, by which kernels of ``__main__`` are found;
        ``sources`` is whether kept sources are executed, which is for whoever knows that nobody else has written the
        recipes; ``root`` is the cache root, in which the members of a group may share what TorchInductor has written.
        """
        self._is_kernel = is_kernel
        self._all_kernels = all_kernels
        self._trust = trust
        self._root = root
        self._main = None if main is None else os.path.abspath(main)
        self._sources = sources
        self._loaded: dict[Place, ModuleType | CannotImportError] = {}

    def _trust_in(self, file: str) -> Trust:
        """Whom to trust with a file: in a root that a group shares its members, elsewhere nobody else than always."""
        if self._root is None or not inside(file, self._root):
            return self._trust
        return self._trust.in_root(self._root)

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
            self._forget_digests()
        if isinstance(found, CannotImportError):
            raise CannotImportError(found.reason)
        return found

    def _forget_digests(self) -> None:
        """Have Triton hash all functions again, but its own: a module may have put another one where they call one.

        What Triton compiles are those that are called now, and it would lie under the key of those that were.
        """
        for kernel in self._all_kernels():
            if not str(kernel.fn.__module__).startswith("triton."):
                kernel.hash = None

    def find(self, function: Function, source: str | None = None) -> Any:
        """The function of Triton's that a recipe names, without `Autotuner`, `Heuristics` and the like around it.

        The one by that name in its module, if it has the recorded digest; else one that has, which its module keeps
        under another name, or where no name leads; else the one by that name, whose source has changed.

        Raises:
            CannotImportError: there is none by this name now.
        """
        place = Place(function.module, function.file, source)
        module = self.load(place)
        try:
            named = self._kernel_in(module, function.qualname)
        except CannotImportError as error:
            found = self._hidden(function)
            if found is None:
                found = self._in_other_file(place, module, function)
            if found is None:
                raise error from None
            return found
        if not function.cache_key or digest_of(named) == function.cache_key:
            return named
        return self._hidden(function, exactly=True) or named

    def alike(self, kernel: Any) -> list[Any]:
        """A kernel, and after it all others of its name and digest: a function may be decorated twice, and unlike."""
        found = [kernel]
        name = (kernel.fn.__module__, kernel.fn.__qualname__)
        for other in self._all_kernels():
            if (other.fn.__module__, other.fn.__qualname__) != name or other is kernel:
                continue
            if digest_of(other) == digest_of(kernel):
                found.append(other)
        return found

    def find_class(self, module: str, qualname: str) -> type:
        """The class that a recipe names.

        Raises:
            CannotImportError: there is none by this name now.
        """
        found = _attribute(self.load(Place(module)), qualname)
        if not isinstance(found, type):
            raise CannotImportError(f"{module}.{qualname} is no class now")
        return found

    # ---- modules

    def _load(self, place: Place) -> ModuleType:
        if place.source is not None:
            return self._of_source(place)
        if place.module in _MAIN:
            return self._of_main(place)
        name = place.module
        if not all(part.isidentifier() for part in name.split(".")):
            return self._of_file(place)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            is_missing = error.name is not None and f"{name}.".startswith(f"{error.name}.")
            if not is_missing or place.file is None:
                raise _raised(name, error) from error
        except BaseException as error:
            raise _raised(name, error) from error
        _refuse_interactive(place.file)
        if not os.path.lexists(_found(place.file)):
            raise CannotImportError(_not_there(name, place.file))
        return self._of_file(place)

    def _of_main(self, place: Place) -> ModuleType:
        main = self._main
        if place.file is not None:
            _refuse_interactive(place.file)
        if main is None:
            where = place.file or "which is not known"
            reason = f"it is of the program's own file, {where}, and that is executed only if --main names it"
            raise CannotImportError(reason)
        if place.file is not None and os.path.basename(place.file) != os.path.basename(main):
            raise CannotImportError(f"it is of {place.file}, and --main names {main}")
        # As Python does for a script: its neighbours can be imported.
        sys.path.insert(0, os.path.dirname(main))
        module = self._executed("__mp_main__", main, text_of(main, None))
        self._call_main(module)
        return module

    def _call_main(self, module: ModuleType) -> None:
        """Call the program's own file, and its kernels, as the program does: these names are in some keys and recipes.

        The text of a function in a tuple is ``JITFunction(__main__:name)`` (`triton/runtime/jit.py`, 3.6.0 and 3.9.0).
        """
        for kernel in self._all_kernels():
            if kernel.fn.__module__ == module.__name__:
                kernel.module = kernel.__module__ = kernel.fn.__module__ = "__main__"
        module.__name__ = "__main__"

    def _of_file(self, place: Place) -> ModuleType:
        if place.file is None:
            raise CannotImportError(f"{place.module!r} is no name of a module")
        _refuse_interactive(place.file)
        file = _found(place.file)
        return self._executed(place.module, file, text_of(file, self._trust_in(file)))

    def _of_source(self, place: Place) -> ModuleType:
        if not self._sources:
            reason = "its source is kept with a recipe that somebody else may have written"
            raise CannotImportError(reason)
        source = place.source or ""
        file = place.file or f"<{place.module}>"
        # Triton asks `inspect` for the source of a function, and that asks here where there is no such file.
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        try:
            leave_driver_alone()
        except BaseException as error:
            raise _raised(file, error) from error
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
            del sys.modules[name]
            raise _raised(file, error) from error
        finally:
            if before is not None:
                # It has users; what was executed is known to this object.
                sys.modules[name] = before
        return module

    # ---- kernels in them

    def _kernel_in(self, module: ModuleType, qualname: str) -> Any:
        if "<locals>" in qualname:
            raise CannotImportError(
                f"{qualname} is made inside a function, and an import does not make it"
            )
        value = _attribute(module, qualname)
        for _ in range(_MOST_WRAPPERS):
            if self._is_kernel(value):
                return value
            value = _wrapped(value)
            if value is None:
                break
        raise CannotImportError(f"{module.__name__}.{qualname} is no function of Triton's now")

    def _hidden(self, function: Function, exactly: bool = False) -> Any:
        """A kernel of this name to which the name does not lead; None if there is none, or no telling which it is.

        It may be behind a decorator, in a dictionary, made by a function, or its name may have been taken by another.
        With ``exactly`` only one with the recorded digest.
        """
        known = []
        for kernel in self._all_kernels():
            names = (kernel.fn.__module__, kernel.fn.__qualname__)
            if names == (function.module, function.qualname):
                known.append(kernel)
        for kernel in known:
            if function.cache_key and digest_of(kernel) == function.cache_key:
                return kernel
        return known[0] if len(known) == 1 and not exactly else None

    def _in_other_file(self, place: Place, module: ModuleType, function: Function) -> Any:
        """The kernel in the recorded file, where the module of that name is another one's now; else None."""
        if place.file is None or place.source is not None or place.module in _MAIN:
            return None
        file = _found(place.file)
        here = getattr(module, "__file__", None) or ""
        if os.path.realpath(here) == os.path.realpath(file) or not os.path.exists(file):
            return None
        return self._kernel_in(self._of_file(place), function.qualname)


def digest_of(kernel: Any) -> str | None:
    """Triton's digest of a function; None where Triton cannot make it."""
    try:
        found: str = kernel.cache_key
    except Exception:
        return None
    return found


def _attribute(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for name in qualname.split("."):
        try:
            found = getattr(found, name)
        except BaseException:
            raise CannotImportError(f"{module.__name__} has no {qualname} now") from None
    return found


def _wrapped(value: object) -> object:
    """What an `Autotuner`, a `Heuristics` or the like is around; None where the value is around nothing."""
    try:
        return getattr(value, "fn", None)
    except BaseException:
        return None


def _refuse_interactive(file: str) -> None:
    """Refuse what Python or IPython calls what was typed.

    Raises:
        CannotImportError: the file is such a one.
    """
    if file.startswith("<") or "/ipykernel_" in file:
        reason = "it was made in a notebook, on stdin or from a text, which cannot be imported"
        raise CannotImportError(reason)


def _found(file: str) -> str:
    """Where a recorded file is: one of a recipe that was carried here is relative to where modules are looked for."""
    for place in ("", *sys.path):
        path = os.path.join(place, file)
        if os.path.isfile(path):
            return path
    return file


def _not_there(module: str, file: str) -> str:
    """What is said of a module that is not there, nor its recorded file; of a carried recipe that never was here."""
    where = "on PYTHONPATH or in the current directory"
    if os.path.isabs(file):
        return f"no module {module} is {where}, and {file} is gone"
    return f"no module {module}, and no {file}, is {where}"


def _raised(what: str, error: BaseException) -> CannotImportError:
    """What is said of a module that raised: this may be anything, SystemExit too."""
    return CannotImportError(f"{what}: {one_line(error)}")
