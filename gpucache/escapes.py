"""Texts that anybody may have written (names of files, of kernels, of hosts) made safe to show."""

from __future__ import annotations


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
