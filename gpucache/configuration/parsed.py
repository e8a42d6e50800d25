"""What a file of settings says, as values: each setting that holds, with its line, and what is wrong in the file."""

from __future__ import annotations

from gpucache.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpucache.configuration.places import Source


class Line(Value):
    """One setting of a file."""

    text: str
    """The value as a variable has it; empty, which is unset, where the value makes no sense: then the default holds."""
    number: int | None
    """The line, from 1; None where that is not known."""


class Problem(Value):
    """What in a file of settings does not hold, and the way out."""

    path: str
    number: int | None
    """The line; None where the whole file is meant."""
    fact: str
    fix: str

    @property
    def where(self) -> str:
        """The file, and the line where that is known."""
        return self.path if self.number is None else f"{self.path}:{self.number}"

    def __str__(self) -> str:
        return f"{self.where}: {self.fact}; {self.fix}"


class Parsed(Value):
    """All that one file says."""

    source: Source
    path: str
    lines: dict[str, Line]
    """By the name of the variable."""
    problems: tuple[Problem, ...] = ()
    lasts: bool = True
    """Whether the same file says the same at any time; a name that is no group now may be one later."""
