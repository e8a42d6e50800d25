"""Charts as SVG, to stand in a page of HTML: drawn by matplotlib, which this module alone imports."""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpucache.escapes import printable
from gpucache.units import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 15
MOST_KINDS = 10
REST = "all others"
_WIDTH_INCHES, _INCHES_A_BAR, _MARGIN_INCHES = 9.0, 0.28, 1.0
_MOST_LETTERS = 48
_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none",  # text stays text, which can be searched and read aloud
    "svg.hashsalt": "gpucache",  # names of parts are the same each time
    "text.parse_math": False,  # the name of a kernel is no formula
    "font.size": 9,
}


def stacked_bars(sums: Mapping[str, Mapping[str, int]], title: str) -> str:
    """A bar for each name, the first on top, with a part of its own colour for each kind; as an ``<svg>`` element.

    ``sums`` says the bytes by name and by kind, the largest first. Of more than `MOST_BARS` names the last bar is the
    sum of the others. Names may be anybody's: matplotlib writes them as text, whatever letters they have.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    bars = _with_rest(sums)
    with mpl.rc_context(dict(_STYLE)), _silent():
        height = _MARGIN_INCHES + _INCHES_A_BAR * len(bars)
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
        _draw(axes, bars)
        axes.set_title(title, loc="left")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return _element(text.getvalue())


@contextmanager
def _silent() -> Iterator[None]:
    """Without matplotlib's words: that the font lacks a letter, which a browser's will have, or is looked for."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _with_rest(sums: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The first bars, and the sum of the others as the last; likewise the largest kinds, and that of the others."""
    kinds = _largest_kinds(sums)
    bars: dict[str, dict[str, int]] = {}
    for number, (name, parts) in enumerate(sums.items()):
        bar = bars.setdefault(name if number < MOST_BARS else REST, {})
        for kind, count in parts.items():
            kept = kind if kind in kinds else REST
            bar[kept] = bar.get(kept, 0) + count
    return bars


def _largest_kinds(sums: Mapping[str, Mapping[str, int]]) -> set[str]:
    """The kinds that take most: a file may name any, and a chart of thousands takes minutes."""
    of_kinds: Counter[str] = Counter()
    for parts in sums.values():
        of_kinds.update(parts)
    return {kind for kind, _ in of_kinds.most_common(MOST_KINDS)}


def _draw(axes: Axes, bars: Mapping[str, Mapping[str, int]]) -> None:
    places = list(range(len(bars)))
    left = [0] * len(bars)
    for kind in _kinds(bars):
        widths = [parts.get(kind, 0) for parts in bars.values()]
        axes.barh(places, widths, left=left, label=_label(kind))
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for place, total in zip(places, left, strict=True):
        axes.annotate(f" {size(total)}", (total, place), va="center")
    axes.set_yticks(places, [_shortened(printable(name)) for name in bars])
    axes.invert_yaxis()  # the first on top
    axes.margins(x=0.12)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.legend(frameon=False)


def _kinds(bars: Mapping[str, Mapping[str, int]]) -> list[str]:
    kinds = {kind for parts in bars.values() for kind in parts}
    return sorted(kinds)


def _label(kind: str) -> str:
    """The name in the legend, which leaves out names that begin with an underscore."""
    shown = _shortened(printable(kind))
    return shown if not shown.startswith("_") else f" {shown}"


def _shortened(name: str) -> str:
    """A name that leaves room for the bars: its beginning and its end."""
    if len(name) <= _MOST_LETTERS:
        return name
    half = _MOST_LETTERS // 2
    return f"{name[:half]}…{name[-half:]}"


def _element(document: str) -> str:
    """The element of an SVG document, without the head that only a file of its own has."""
    return document[document.index("<svg") :]
