"""Metrics as OpenMetrics and Prometheus text: printed, in a file, or over HTTP. Alone here imports prometheus_client.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats and
https://prometheus.io/docs/specs/om/open_metrics_spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, exposition, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics

from uniq_pipeline.errors import InputError
from uniq_pipeline.metrics.described import METRICS, Type
from uniq_pipeline.metrics.measured import Distribution, Measured


@dataclass(frozen=True)
class _Collector:
    """Measures anew whenever it is asked."""

    measure: Callable[[], Measured]

    def collect(self) -> Iterator[Metric]:
        measured = self.measure()
        for name in METRICS:
            if name in measured:
                yield _family(name, measured)


def _family(name: str, measured: Measured) -> Metric:
    metric = METRICS[name]
    if metric.type is Type.INFO:
        info = InfoMetricFamily(name.removesuffix("_info"), metric.help)
        for labels in measured[name]:
            info.add_metric([], dict(zip(metric.labels, labels, strict=True)))
        return info
    if metric.type is Type.HISTOGRAM:
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for labels, value in measured[name].items():
            assert isinstance(value, Distribution)
            histogram.add_metric(labels, buckets=list(value.steps), sum_value=value.total)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.type is Type.COUNTER:
        family = CounterMetricFamily(name, metric.help, labels=metric.labels)
    else:
        family = GaugeMetricFamily(name, metric.help, labels=metric.labels)
    for labels, value in measured[name].items():
        family.add_metric(labels, value)
    return family


def _registry(measure: Callable[[], Measured]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(measure))
    return registry


def as_text(measure: Callable[[], Measured], *, as_openmetrics: bool = False) -> bytes:
    """One measurement, in the Prometheus text format 0.0.4, or in OpenMetrics 1.0."""
    encode = openmetrics.generate_latest if as_openmetrics else exposition.generate_latest
    return encode(_registry(measure))


def write_textfile(measure: Callable[[], Measured], path: Path) -> None:
    """One measurement, in a file that is replaced at once. Raises InputError when that cannot be written."""
    try:
        exposition.write_to_textfile(str(path), _registry(measure))
    except OSError as error:
        raise InputError(f"--textfile {path}: cannot be written: {error.strerror}") from None


@contextmanager
def serving(measure: Callable[[], Measured], host: str, port: int) -> Iterator[int]:
    """Answers scrapes until the end of the block, on the port that is given; 0 is any free one.

    The format is what the request's `Accept` asks for. Raises InputError when the address cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, host, _registry(measure))
    except OSError as error:
        raise InputError(f"--listen {host}:{port}: {error.strerror or error}") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
