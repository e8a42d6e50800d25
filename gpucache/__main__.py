"""``python -m gpucache``."""

from gpucache.cli import entry

entry()
