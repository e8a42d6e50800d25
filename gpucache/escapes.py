"""Texts that anybody may have written (names of files, of kernels, of hosts) made safe to show."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def printable(text: str) -> str:
    """The text on one line, in which each letter that would move the cursor, or cannot be shown, is an escape.

    Those are controls, ends of lines, what changes the direction of writing, blanks other than the blank, and bytes
    that are no letters. The escapes are Python's; a backslash stays as it is.
    """
    if text.isprintable():
        return text
    letters = []
    for letter in text:
        letters.append(letter if letter.isprintable() else _escape(letter))
    return "".join(letters)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


_SHOWN = 200


def without_secrets(url: str) -> str:
    """A URL that may hold secrets where it should not, as may be shown: ``***`` stands for what could be one.

    That is what stands between a user's name and the last ``@``, whatever its letters are, what follows a name and is
    no port, and the value of each option but those that say nothing secret. Of a very long text the beginning is shown.

    >>> without_secrets("redis://me:pa@ss@host/0?token=x&mode=read")
    'redis://me:***@host/0?token=***&mode=read'
    """
    import re  # a launch shows no URL
    from urllib.parse import unquote

    shown = re.sub(r"(?<=//)([^/?#@:]*?)(?::|%3[Aa]).*@", r"\1:***@", url)
    shown = re.sub(r"(?<=//)([^/?#@:[]*):(?!\*\*\*@|\d*(?:[/?#]|$)).*", r"\1:***", shown)
    base, question, query = shown.partition("?")
    pairs = []
    for pair in re.split("[&;]", query):
        name, equals, value = pair.partition("=")
        is_plain = name in _PLAIN_OPTIONS and "***" not in pair and "@" not in unquote(value)
        pairs.append(pair if is_plain else f"{name}{equals}***")
    if question:
        base += question + "&".join(pairs)
    return printable(base[:_SHOWN])


def without(text: str, secrets: Iterable[str]) -> str:
    """A text in which ``***`` stands for each of some secrets, as when another machine has sent them back."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


_PLAIN_OPTIONS = frozenset(
    {"mode", "trust", "endpoint", "region", "anonymous", "account", "prefix"}
)
