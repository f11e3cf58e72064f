"""What stories about one topic in memory have in common: its traffic, and the clean run at their end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from support.audit import audit
from support.frames import MemoryTopic, small_traffic
from support.ticks import run_tick
from uniq_pipeline.config import Settings
from uniq_pipeline.windows import Grain

T0 = 1_704_067_200 - 300  # 2023-12-31T23:55:00Z, five minutes before an hour ends


@pytest.fixture(autouse=True)
def minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser grains pass the same code as hours, for seven times the time; test_crash.py has them all."""
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


def more(topic: MemoryTopic, start_s: int, end_s: int, frames_per_s: float = 1) -> None:
    """Sends the traffic of `[T0 + start_s, T0 + end_s)`, with late, flipped and broken frames."""
    traffic = small_traffic(1, frames_per_s=frames_per_s)
    topic.send(traffic.records_between(T0 + start_s, T0 + end_s), Random(start_s))


def mended(
    settings: Settings, topic: MemoryTopic, run: Callable[[], object] | None = None, grains=("minute", "hour")
) -> list[str]:
    """What the audit finds after one clean run, which closes windows."""
    if run is None:
        run_tick(settings, topic, close_windows=True)
    else:
        run()
    return audit(settings, topic.delivered, grains=grains)
