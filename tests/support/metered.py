"""A pipeline with something of everything to measure: late, held and rejected frames, moves, and results that wait."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

from support.frames import send, small_traffic
from support.ticks import run_tick
from uniq_pipeline.config import Settings
from uniq_pipeline.errors import BrokerError
from uniq_pipeline.kafka.embedded import EmbeddedBroker

SPAN_S = 2 * 3600


class RefusingSink:
    """A results topic that takes nothing."""

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int:
        raise BrokerError("topic counts: not authorized")


def metered_pipeline(broker: EmbeddedBroker, folder: Path) -> Settings:
    """Two hours of traffic up to now, drained in two ticks; results of the second are not published."""
    settings = Settings(
        data_dir=folder,
        topic="metered",
        results_topic="metered-counts",
        kafka_bootstrap_servers=broker.bootstrap_servers,
        duckdb_threads=1,
    )
    traffic, rng, now = small_traffic(5, frames_per_s=3), Random(5), time.time()
    send(broker.bootstrap_servers, settings.topic, traffic.records_between(now - SPAN_S, now - 600), rng)
    run_tick(settings, close_windows=True)
    send(broker.bootstrap_servers, settings.topic, traffic.records_between(now - 600, now), rng)
    run_tick(settings, open_sink=RefusingSink)
    return settings
