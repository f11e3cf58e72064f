"""What a run needs from outside, opened when it starts: never when definitions load, nothing in run config."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import ConfigurableResource

from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.drain import Source
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.publish import Sink
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop


class PipelineResource(ConfigurableResource):
    """The pipeline of the settings in force. Has no fields: settings hold secrets, and run config is shown."""

    @contextmanager
    def workshop(self) -> Iterator[Workshop]:
        with open_workshop(load_settings(), now=self.now) as shop:
            yield shop

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger alone, for sensors: DuckDB and the lake would cost each evaluation a quarter of a second."""
        settings = load_settings()
        ledger = Ledger(settings.effective_ledger_url, now=self.now)
        try:
            ledger.prepare(timezone=settings.timezone, lg_k=str(settings.lg_k))
            yield ledger
        finally:
            ledger.close()

    def source(self, settings: Settings) -> Source:
        return KafkaSource(settings)

    def open_sink(self, settings: Settings) -> Sink:
        return KafkaSink(settings, settings.results_topic or "")

    def open_refined_sink(self, settings: Settings) -> Sink:
        return KafkaSink(settings, settings.refined_topic or "")

    def now(self) -> float:
        """Wall clock, seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
