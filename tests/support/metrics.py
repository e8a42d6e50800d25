"""A root in which things are counted, and its metrics as their readers see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gpucache.layout import paths
from gpucache.store.stats import Stats
from gpucache.watch.metrics import exposition
from gpucache.watch.metrics.families import families

Series = tuple[str, frozenset[tuple[str, str]]]


def counted_root(root: Path) -> Path:
    """Make a root with the device directories 0 and 1, in which nothing was counted yet."""
    for part in ("gpucache/v1/stats", "gpucache/v1/tmp", "triton/0", "triton/1"):
        (root / part).mkdir(parents=True, mode=0o700)
    for path in (root, root / "gpucache", root / "gpucache/v1", root / "triton"):
        path.chmod(0o700)
    return root


def count(root: Path, device: str = "0", **amounts: float) -> None:
    counters = Stats(paths.ours(str(root), "stats"), device)
    for name, amount in amounts.items():
        counters.add(name, amount)
    counters.flush()


def series(
    text: str, parse: Callable[[str], object] = text_string_to_metric_families
) -> dict[Series, float]:
    """The numbers in a text, by name and labels; each series stands there once."""
    found: dict[Series, float] = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def seen(root: Path, hosts: str = "own") -> dict[Series, float]:
    return series(exposition.text(families(str(root), {}, hosts)).decode())


def of(found: Mapping[Series, float], name: str, **labels: str) -> float:
    """The sum of the series of this name that have these labels."""
    wanted = labels.items()
    values = [value for (one, has), value in found.items() if one == name and wanted <= has]
    assert values, (name, labels)
    return sum(values)
