"""Follow the hint of a refusal as a person would: set what it says to set, run its command as who may."""

from __future__ import annotations

import re
from collections.abc import Callable

from support.pods import Done

OWN = "GPUCACHE_DIR to a directory of your own"
Act = Callable[..., Done]
"""Runs a line of shell as a user, with more of an environment."""


def ways(hint: str) -> list[str]:
    """The ways that a hint offers, each of which is meant to be enough."""
    return re.split(r", or |, else |; or ", hint)


def follow(way: str, act: Act, uid: int, own: str) -> dict[str, str]:
    """Do what one way says; return what it says to set. ``own`` is a directory of this user's own.

    A command in backquotes is run as this user, or as who is named by ``have uid … say``.
    """
    for who, command in re.findall(r"(?:have uid (\d+) say )?`([^`]+)`", way):
        done = act(int(who) if who else uid, command)
        assert done.returncode == 0, (command, done.stderr)
    settings = dict(re.findall(r"(GPUCACHE_[A-Z_]+)=('[^']*'|[^\s,;]+)", way))
    if OWN in way or way == "choose another root":
        settings["GPUCACHE_DIR"] = own
    return {name: value.strip("'") for name, value in settings.items()}


def hint_of(done: Done) -> str:
    """The hint of a command that was refused."""
    assert done.returncode == 1, done
    (hint,) = re.findall(r"^hint: (.*)", done.stderr, re.M)
    return str(hint)
