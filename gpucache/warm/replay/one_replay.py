"""One recipe compiled for one target: the function is found and compared, its arguments are made, Triton compiles."""

from __future__ import annotations

from typing import NamedTuple

from gpucache.kernels.decoding import BadEncoding
from gpucache.kernels.recipe import Recipe, Target, decode
from gpucache.store.manifest import entry_path, intact, read_manifest
from gpucache.store.placing import wait_until_made
from gpucache.triton.capture import replaying
from gpucache.triton.knobs import bakes_paths, ignores_cache
from gpucache.triton.location import Location
from gpucache.triton.manager import DeviceCacheManager
from gpucache.warm.replay import changes
from gpucache.warm.replay.functions import Functions
from gpucache.warm.replay.refusals import are_harmless, is_refusal
from gpucache.warm.replay.source_files import CannotImportError, one_line
from gpucache.warm.replay.stand_ins import arguments
from gpucache.warm.replay.value_factory import ValueFactory
from gpucache.warm.replay.variables import VariableError, as_recorded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from gpucache.kernels.recipe import Path
    from gpucache.warm.outcome import End
    from gpucache.warm.replay.specialization import Compilable


class WatchedLocation(Location, kw_only=True):
    """A location that keeps what goes wrong, beside logging it."""

    failures: list[str]

    def degraded(self, what: str, cause: object, outcome: str = "") -> None:
        """As `Location.degraded`, and keep what went wrong."""
        self.failures.append(f"{what}: {cause}")
        super().degraded(what, cause, outcome or "not kept")


class _Ended(Exception):
    """A replay has ended before its compile. Triton's `compile` catches no exception of others."""

    def __init__(self, end: End, why: str = "") -> None:
        super().__init__(end, why)
        self.end = end
        self.why = why


class _KeyAsked(Exception):
    """Triton has asked for a key, which is all that was to be known."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


_REFUSED_OPTIONS = ("extern_libs", "ir_override", "arch", "backend_name")
"""Options that name files to load, or that are the target's alone; no recipe of gpucache's has one."""


class _Decoded(NamedTuple):
    """The values of a recipe."""

    types: Mapping[str, object]
    constants: Mapping[Path, object]
    options: Mapping[str, object]


class Replay:
    """One recipe, one target."""

    def __init__(
        self,
        recipe: Recipe,
        target: Target,
        functions: Functions,
        location: WatchedLocation,
        exact: bool,
        dry_run: bool,
    ) -> None:
        self.recipe = recipe
        self.target = target
        self.functions = functions
        self.location = location
        self.exact = exact
        self.dry_run = dry_run
        # Imported late: `prepare` has set the environment before.
        from gpucache.warm.replay import running_triton, specialization

        self.triton = running_triton
        self.specialization = specialization
        self.key: str | None = None
        """The key that Triton asked for."""
        self.manager: DeviceCacheManager | None = None
        self.changed = ""
        """What has changed in the source since the recipe was recorded; ``""`` where nothing is known to have."""

    def ended(self) -> tuple[End, str]:
        """Replay; how that ended, and what more there is to say."""
        self.location.failures.clear()
        try:
            return self._ended()
        except _Ended as ended:
            return ended.end, ended.why
        except CannotImportError as error:
            return "cannot be imported", error.reason
        except VariableError as error:
            return "differs here", str(error)
        except BaseException as error:
            return self._failed(error)

    def _ended(self) -> tuple[End, str]:
        self._check_options()
        found = self.functions.find(self.recipe.function, self.recipe.source)
        decoded = self._decoded()
        function = self._recorded_one(found, decoded)
        self._compare(function, decoded.constants.values())
        with (
            replaying(self.recipe),
            as_recorded(self.recipe.variables, self.triton.listed_variables),
            self.triton.asked_for(self._answer),
        ):
            self._compilable(function, decoded, self.target).compile()
        return self._published()

    def _recorded_one(self, found: Any, decoded: _Decoded) -> Any:
        """Of functions that differ only in what their decorators say, the one that has the recorded key."""
        if not self._is_same_triton:
            return found
        alike = self.functions.alike(found)
        if len(alike) > 1:
            for function in alike:
                if self._recorded_key(function, decoded) == self.recipe.key:
                    return function
        return found

    def _recorded_key(self, function: Any, decoded: _Decoded) -> str | None:
        """The key that a function has for the recorded target; None where that cannot be told."""

        def stop(key: str) -> DeviceCacheManager:
            raise _KeyAsked(key)

        try:
            with (
                as_recorded(self.recipe.variables, self.triton.listed_variables),
                self.triton.asked_for(stop),
            ):
                self._compilable(function, decoded, self.recipe.target).compile()
        except _KeyAsked as asked:
            return asked.key
        except Exception:  # a parameter does not fit: it is another one
            return None
        return None

    def _check_options(self) -> None:
        """See that nothing stands in the options that no recipe may say, and that the target's backend has them all."""
        for name in _REFUSED_OPTIONS:
            if name in self.recipe.options:
                raise _Ended("failed", f"the option {name} is none that a recipe may give")
        if not are_harmless(self.recipe.options.get("ptx_options")):
            raise _Ended("failed", "its options for ptxas name a file")
        try:
            unknown = self.specialization.unknown_options(self.target, list(self.recipe.options))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _Ended("not for this target", one_line(error)) from error
        if not self._is_same_triton:
            unknown = self._without_gone_options(unknown)
        if unknown:
            end: End = "failed"
            if self.target.backend != self.recipe.target.backend:
                end = "not for this target"
            raise _Ended(
                end, f"Triton {self.triton.VERSION} has no option {unknown[0]} for {self.target}"
            )

    def _without_gone_options(self, unknown: list[str]) -> list[str]:
        """Leave out of the recipe what this Triton has no more, or not yet, and what was off; what remains unknown.

        Each `triton.Config` of 3.2 names four options of its warp specialization, which 3.4 has not.
        """
        options = self.recipe.options
        off = [name for name in unknown if options[name] in (None, False, 0, "")]
        kept = {name: value for name, value in options.items() if name not in off}
        self.recipe = self.recipe._replace(options=kept)
        return [name for name in unknown if name not in off]

    def _decoded(self) -> _Decoded:
        """The values of the recipe as the program had given them."""
        recipe = self.recipe
        values = ValueFactory(self.functions, self.triton)
        try:
            made = _Decoded(
                {name: decode(value, values) for name, value in recipe.signature.items()},
                {path: decode(value, values) for path, value in recipe.constants},
                {name: decode(value, values) for name, value in recipe.options.items()},
            )
        except (BadEncoding, ValueError) as error:
            raise _Ended("failed", one_line(error)) from error
        if values.changed and self._is_same_triton:
            self.changed = f"the source of {values.changed}, a constant, is not the recorded one"
        return made

    def _compare(self, function: Any, constants: Iterable[object]) -> None:
        """Compare the function with what was recorded, before anything is compiled."""
        digest = function.cache_key
        is_same = digest == self.recipe.function.cache_key
        if self._is_same_triton and not is_same and self.recipe.function.cache_key:
            self.changed = "its source, or that of a function it calls, is not the recorded one"
        constants = list(constants)
        has_globals = self.triton.HAS_GLOBALS_IN_KEY
        different = changes.difference(self.recipe, function, constants, is_same, has_globals)
        if different is not None and not different.edited:
            raise _Ended("differs here", different.sentence)
        if different is not None:
            self.changed = different.sentence
        if self.target != self.recipe.target:
            said = changes.undecided(function, constants, has_globals)
            if said:
                raise _Ended("differs here", said)
        if self.exact and self.changed:
            raise _Ended("source changed", self.changed)
        why = changes.unfit(self.recipe, function)
        if why:
            raise _Ended("source changed", why)

    @property
    def _is_same_triton(self) -> bool:
        """Whether digests can be compared: those of what calls Triton's own functions change with its version."""
        return self.recipe.triton_version == str(self.triton.VERSION)

    def _compilable(self, function: Any, decoded: _Decoded, target: Target) -> Compilable:
        recipe = self.recipe
        types, constants, options = decoded
        if not recipe.launched:
            found = dict(recipe.specialized)
            return self.specialization.as_said(function, target, types, constants, found, options)
        names = changes.recorded_names(recipe, list(function.arg_names)) or []
        values = arguments(recipe, names, types, constants, self.triton.descriptor)
        return self.specialization.launched(function, target, values, options)

    def _answer(self, key: str) -> DeviceCacheManager:
        """The manager of the key for which Triton asks; or the end, where nothing is to be compiled."""
        self.key = key
        entry = entry_path(self.location.root, key)
        is_comparable = self.target == self.recipe.target and self._is_same_triton
        if self.exact and is_comparable and key != self.recipe.key:
            raise _Ended("source changed", f"its key would be {key}, and was {self.recipe.key}")
        if self.dry_run:
            there = self._is_whole(entry)
            raise _Ended("there" if there else "missing")
        if self.location.sound(entry, verify=True) is not None:
            raise _Ended("there")
        if bakes_paths() or ignores_cache():
            raise _Ended("failed", "a setting of Triton's forbids to share what is compiled")
        self.manager = DeviceCacheManager(key, location=self.location)
        return self.manager

    def _is_whole(self, entry: str) -> bool:
        """Whether an entry is there and whole, without a stamp that says it was used."""
        try:
            read = read_manifest(entry)
        except OSError:
            return False
        return read is not None and intact(entry, read[0])

    def _published(self) -> tuple[End, str]:
        """How a compile ended that has raised nothing."""
        if self.key is None or self.manager is None:
            return "failed", "Triton asked for no key"
        if self.manager.is_hit:
            return "there", ""
        entry = entry_path(self.location.root, self.key)
        if self.location.sound(entry) is None:
            wait_until_made(entry)
        if self.location.sound(entry) is None:
            causes = self.location.failures or ["see the log"]
            return "failed", f"compiled, but not published: {causes[-1]}"
        if self.changed:
            return "made (source changed)", self.changed
        return "made", ""

    def _failed(self, error: BaseException) -> tuple[End, str]:
        """How a replay ended in which Triton or the user's code has raised."""
        why = one_line(error)
        if self.target == self.recipe.target or self.changed:
            return "failed", why
        is_other_maker = self.target.backend != self.recipe.target.backend
        if is_refusal(error, is_other_maker):
            return "not for this target", why
        return "failed", why
