"""What a process asks the courier of its node, and what the courier answers: a line of JSON each, in one connection."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple, TypeVar

Did = Literal["hit", "miss", "bad", "error", "timeout", "disk", "closed"]
"""What came of a question. ``hit``: the entry is in the store; ``miss``: the remote has no such entry; ``bad``: what it
has is refused; ``error``: the remote failed; ``timeout``: no answer in time; ``disk``: the store's disk refused;
``closed``: the remote was not asked, since it has failed, or had nothing, for others (`breaker`)."""

MOST_BYTES = 16 * 1024
"""No question and no answer is longer."""
_SAID_LETTERS = 500


class Question(NamedTuple):
    """An entry that a process has missed, whose key it has locked."""

    store_key: str
    triton_version: str
    timeout_s: float
    """For so long the answer is waited for."""

    def encoded(self) -> bytes:
        """The line."""
        return json.dumps(self._asdict()).encode() + b"\n"


class Answer(NamedTuple):
    """What came of a question."""

    did: Did
    code: str = ""
    """The kind of failure: of `BadPack`, `RemoteError` or the breaker."""
    said: str = ""
    """What there is to tell, in words that hold no secret."""
    size_bytes: int = 0
    """So many bytes came from the remote."""

    def encoded(self) -> bytes:
        """The line."""
        cut = self._replace(said=self.said[:_SAID_LETTERS])
        return json.dumps(cut._asdict()).encode() + b"\n"


Line = TypeVar("Line", Question, Answer)


def parsed_question(line: bytes) -> Question | None:
    """What a line asks; None where that makes no sense."""
    return _parsed(line, Question("", "", 0.0))


def parsed_answer(line: bytes) -> Answer | None:
    """What a line answers; None where that makes no sense."""
    return _parsed(line, Answer("miss"))


def _parsed(line: bytes, model: Line) -> Line | None:
    """What a line says that has the fields of a model, each of the model's type."""
    try:
        said = json.loads(line)
        fields = {name: said[name] for name in model._fields}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    for name, value in model._asdict().items():
        if type(fields[name]) is not type(value):
            return None
    return model._replace(**fields)
