"""Metrics as text: Prometheus' text format 0.0.4, or what a scrape asks for. With `serving` the door to its client."""

from __future__ import annotations

from importlib.util import find_spec

from gpucache.errors import NotInstalledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from gpucache.watch.metrics.families import Family


def check_installed() -> None:
    """Raise where the library is missing.

    Raises:
        NotInstalledError: prometheus-client is not there.
    """
    if find_spec("prometheus_client") is None:
        raise NotInstalledError("prometheus_client", "metrics need it", "watch")


def text(families: Iterable[Family]) -> bytes:
    """Prometheus' text format 0.0.4, which its servers, node_exporter's textfile collector and agents read."""
    from prometheus_client import generate_latest

    found = list(families)
    data: bytes = generate_latest(registry(lambda: found))
    return data


def registry(look: Callable[[], Iterable[Family]]) -> CollectorRegistry:
    """A registry of the client library that looks anew for each scrape, and has nothing of this process itself."""
    from prometheus_client import CollectorRegistry

    class Looking:
        def collect(self) -> Iterator[Metric]:
            return map(_metric, look())

        def describe(self) -> list[Metric]:
            return []  # else it would look when it is registered

    made = CollectorRegistry(auto_describe=False)
    made.register(Looking())
    return made


def _metric(family: Family) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if family.about.kind == "counter" else GaugeMetricFamily
    metric = kind(family.about.name, family.about.meaning, labels=family.about.labels)
    for labels, value in family.samples.items():
        metric.add_metric(labels, value)
    return metric
