"""x"""

from __future__ import annotations

import pytest
from support.audit import audit
from support.frames import MemoryTopic, frame
from support.mutations import mutated
from support.stories import T0, mended, minutes_and_hours_only
from support.ticks import OnceAt, run_tick

from uniq_pipeline.config import VeryLate
from uniq_pipeline.count import count_minutes
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.drain import drain
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.windows import Grain

_minutes_and_hours_only = minutes_and_hours_only

# 64: what comes while it is being computed


@pytest.mark.parametrize("point", ["count.before_read", "count.before_commit"])
@pytest.mark.parametrize("mutation", [None])
def test_fault_64_a_minute_that_changes_while_its_hour_is_merged_is_merged_again(point, mutation, make_settings):
    assert while_its_hour_is_merged(make_settings(very_late=VeryLate.CORRECT), point) == []


def while_its_hour_is_merged(settings, point):
    topic = MemoryTopic(logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 7}") for i in range(60)])
    topic.send([frame(T0 + 700 + i, "user") for i in range(64)])

    def meanwhile() -> None:
        topic.send([frame(T0, "somebody new", arrival_s=T0 + 800, kind=Kind.LATE)])
        with open_workshop(settings) as shop:
            drain(settings, shop.ledger, shop.lake, topic)
            count_minutes(shop, final_before_s=None)

    at = OnceAt(point, meanwhile, nth=2)  # the first is that of the minutes
    run_tick(settings, topic, failpoint=at)
    assert at.happened
    run_tick(settings, topic, close_windows=False)
    return audit(settings, topic.delivered, grains=("minute", "hour"), closed=False)


def test_fault_64_mutant(make_settings):
    with mutated("marks are cleared whatever their seq"):
        assert while_its_hour_is_merged(make_settings(very_late=VeryLate.CORRECT), "count.before_commit") != []


def test_fault_64_an_hours_set_that_becomes_stale_while_its_days_is_built_makes_the_days_anew(
    make_settings, monkeypatch
):
    """The day is put together from the old set of one hour, and its mark goes: the hour's new set must mark it."""
    for place in ("rollup", "sets"):
        monkeypatch.setattr(f"uniq_pipeline.{place}.ROLLUP_ORDER", (Grain.HOUR, Grain.DAY))
    settings = make_settings(very_late=VeryLate.CORRECT)
    topic = MemoryTopic(logs={0: []})
    day = T0 + 300
    topic.send([frame(day + i, f"user-{i % 7}") for i in range(0, 7200, 60)])
    topic.send([frame(day + 86_400 + 700 + i, "user") for i in range(64)])
    run_tick(settings, topic, close_windows=True)

    def late(event_s: int, uid: str) -> None:
        topic.send([frame(event_s, uid, arrival_s=day + 90_000, kind=Kind.LATE)])

    def meanwhile() -> None:
        late(day + 5, "new in the first hour")
        run_tick(settings, topic)

    late(day + 3700, "new in the second hour")
    at = OnceAt("sets.before_commit", meanwhile)
    run_tick(settings, topic, failpoint=at, close_windows=True)
    assert at.happened
    assert mended(settings, topic, grains=("minute", "hour", "day")) == []
