"""One run of the product, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uniq_pipeline.config import Settings
from uniq_pipeline.drain import Source
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.publish import Sink
from uniq_pipeline.tick import TickReport, open_workshop, tick


def run_tick(
    settings: Settings,
    source: Source | None = None,
    *,
    open_sink: Callable[[], Sink] | None = None,
    failpoint: Callable[[str], None] = lambda name: None,
    **options: Any,
) -> TickReport:
    """One tick from the settings' own topics, or with another source or sink; further options are tick()'s."""
    with open_workshop(settings, failpoint=failpoint) as shop:
        return tick(
            shop,
            source or KafkaSource(settings),
            open_sink or (lambda: KafkaSink(settings, settings.results_topic or "")),
            **{
                "open_refined_sink": lambda: KafkaSink(settings, settings.refined_topic or ""),
                **options,
            },
        )


class OnceAt:
    """A failpoint that does something the nth time that a name is reached."""

    def __init__(self, name: str, do: Callable[[], object], *, nth: int = 1) -> None:
        self._name = name
        self._do = do
        self._left = nth

    @property
    def happened(self) -> bool:
        return self._left <= 0

    def __call__(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                self._do()
