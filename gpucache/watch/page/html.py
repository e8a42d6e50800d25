"""`to_html`: a `Page` as one file of HTML that needs no other, and asks no server for anything.

The template escapes whatever it shows (jinja2's ``autoescape``), and the page lets a browser run one script, named by
its SHA-256: a kernel whose name is markup stays a name, whoever wrote the cache.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gpucache import __version__
from gpucache.errors import NotInstalledError
from gpucache.escapes import printable
from gpucache.watch.page.charts import stacked_bars

if TYPE_CHECKING:
    from gpucache.watch.page.values import Page

_HERE = files("gpucache.watch.page")


def check_installed() -> None:
    """Raise where a library is missing, before a long look at the cache.

    Raises:
        NotInstalledError: jinja2 or matplotlib is missing.
    """
    for module in ("jinja2", "matplotlib"):
        if find_spec(module) is None:
            raise NotInstalledError(module, "the page of a cache needs it", "watch")


def to_html(page: Page) -> str:
    """The page as HTML. Needs the extra ``watch`` (jinja2 and matplotlib)."""
    from jinja2 import Environment
    from markupsafe import Markup

    def shown(value: object) -> object:
        if isinstance(value, str) and not isinstance(value, Markup):
            return printable(value)
        return value

    script = _text("page.js")
    chart = stacked_bars(page.by_kernel, "Bytes on disk by kernel and architecture")
    environment = Environment(autoescape=True, finalize=shown)
    template = environment.from_string(_text("page.html.j2"))
    text: str = template.render(
        page=page,
        version=__version__,
        chart=Markup(chart),  # matplotlib has escaped the names
        style=Markup(_text("page.css")),
        script=Markup(script),
        script_hash=_hash(script),
    )
    return text


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """What a Content-Security-Policy names a script by."""
    digest = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()
