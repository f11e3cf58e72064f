"""A tick that finds more than it has time for: it does a part, the newest first, and the next ticks do the rest."""

from __future__ import annotations

from typing import Any

import pytest
from support.audit import audit, read_back
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from uniq_pipeline import results
from uniq_pipeline.config import Settings
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.move import admit
from uniq_pipeline.tick import open_workshop, tick

T0 = 1_704_067_200
HOURS = 12


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "BUCKETS_AT_ONCE", 2)


@pytest.fixture
def topic() -> MemoryTopic:
    """Half a day, a frame in twenty seconds."""
    topic = MemoryTopic()
    topic.send([frame(T0 + i, f"user-{i % 50}") for i in range(0, HOURS * 3600, 20)])
    return topic


def minutes(settings: Settings) -> list[int]:
    return sorted(read_back(settings, []).results["minute"])


def answers(settings: Settings) -> dict[str, dict[int, tuple[Any, ...]]]:
    """What must not depend on how many ticks it took."""
    names = ("frames", "unique_users", "hll", "late_frames", "held_frames", "rejected_frames", "status")
    stored = read_back(settings, [])
    return {
        grain: {start_s: tuple(row[name] for name in names) for start_s, row in rows.items()}
        for grain, rows in stored.results.items()
    }


def test_a_drain_without_time_ends_after_a_batch_and_says_how_much_is_left(make_settings, topic):
    settings = make_settings(batch_frames=300)
    total = len(topic.delivered)
    report = run_tick(settings, topic, drain_for_s=0)
    assert report.drain.batches == 1
    assert report.drain.lag == total - report.drain.delivered > 0
    assert minutes(settings), "what was read is counted"


def test_windows_beyond_the_time_stay_dirty_and_the_newest_come_first(make_settings, topic):
    settings = make_settings()
    run_tick(settings, topic, compute_for_s=0)
    with open_workshop(settings) as shop:
        assert overview(shop.ledger).dirty["minute"] == (HOURS - 2) * 60
    assert minutes(settings) == list(range(T0 + (HOURS - 2) * 3600, T0 + HOURS * 3600, 60))


@pytest.mark.slow
def test_ticks_without_time_end_where_one_with_time_does(make_settings, tmp_path, topic):
    whole = make_settings(data_dir=tmp_path, topic=topic.topic)
    run_tick(whole, topic)
    bounded = make_settings(topic=topic.topic, batch_frames=300)
    for _ in range(200):
        run_tick(bounded, topic, drain_for_s=0, compute_for_s=0)
        with open_workshop(bounded) as shop:
            seen = overview(shop.ledger)
        if not seen.lag and not seen.dirty:
            break
    assert audit(bounded, topic.delivered, closed=False) == []
    assert answers(bounded) == answers(whole)


def test_a_window_that_waits_for_event_time_is_not_computed_again_at_every_tick(make_settings):
    """Frames of the future that a person admitted, say: their windows stay provisional for years."""
    settings, topic = make_settings(), MemoryTopic(logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 50}") for i in range(200)])
    topic.send([frame(T0 + 10**9, "from the future", arrival_s=T0 + 200)])
    run_tick(settings, topic)
    with open_workshop(settings) as shop:
        assert admit(shop, T0 + 10**9, T0 + 10**9 + 1).frames == 1
        first, second = (tick(shop, None, None) for _ in range(2))
    assert first.refreshed[0].computed == 1
    assert [report.computed for report in second.refreshed] == [0] * len(second.refreshed)
    assert read_back(settings, []).results["minute"][T0 // 60 * 60 + 10**9 // 60 * 60]["status"] == "provisional"
