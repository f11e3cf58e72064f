"""A topic that is deleted and made again, over and over: each time it is another log, whose offsets are its own."""

from __future__ import annotations

import pytest
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from uniq_pipeline.errors import TopicRecreated
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.logs import current_log
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.ledger.upkeep import forget_topic
from uniq_pipeline.move import admit
from uniq_pipeline.offsets import log_after, newest_log, topic_of
from uniq_pipeline.rebuild import carry_out, plan_rebuild
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.verify import verify
from uniq_pipeline.warehouse import ask_catalog

START_S = 1_790_000_040
LATE_S = START_S - 3600  # too late to be counted unasked


def lives(number: int) -> list:
    """What is sent in one life of the topic: at offset 5 a frame that is held, of a user of its own."""
    ordinary = [frame(START_S + i, f"u{i}") for i in range(10)]
    late = frame(LATE_S, f"late-{number}", arrival_s=START_S + 5)
    return [*ordinary[:5], late, *ordinary[5:]]


def asked(settings, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in ask_catalog(settings.catalog_path, sql).to_pylist()]


def wrong(settings) -> list[str]:
    with open_workshop(settings) as shop:
        return [fault.text for check in verify(shop, sample=None).checks for fault in check.faults]


@pytest.fixture
def recreated(make_settings):
    """Settings, and a topic in its third life; the held frame of each was admitted as soon as it was there."""
    settings, topic = make_settings(), MemoryTopic(logs={0: []})
    for number in (1, 2, 3):
        topic.topic_id, topic.logs = f"id-{number}", {0: []}
        topic.send(lives(number))
        if number > 1:
            assert isinstance(run_tick(settings, topic).drain_error, TopicRecreated)
            with open_workshop(settings) as shop:
                assert forget_topic(shop.ledger, topic.topic, topic.topic_id) == 1
        assert run_tick(settings, topic).drain.held == 1
        assert asked(settings, "SELECT uid, topic FROM held_frames") == [
            (f"late-{number}", "frames" if number == 1 else f"frames~{number}")
        ]
        with open_workshop(settings) as shop:
            assert admit(shop, LATE_S, LATE_S + 60).frames == 1
        run_tick(settings, topic)
    return settings, topic


def test_each_life_of_a_topic_is_a_log_of_its_own(recreated):
    settings, topic = recreated
    assert asked(settings, "SELECT topic, count(*) FROM frames GROUP BY 1 ORDER BY 1") == [
        ("frames", 11),
        ("frames~2", 11),
        ("frames~3", 11),
    ]
    assert asked(settings, "SELECT frames, unique_users FROM minute_counts ORDER BY window_start") == [(3, 3), (30, 10)]
    assert asked(settings, "SELECT count(*) FROM held_frames") == [(0,)]
    assert wrong(settings) == []
    topic.send([frame(START_S + 20, "new")])
    assert run_tick(settings, topic).drain.next_offsets == {0: 12}


def test_a_lost_ledger_is_rebuilt_with_every_log_and_the_newest_goes_on(recreated):
    settings, topic = recreated
    before = asked(settings, "SELECT * FROM frames ORDER BY topic, kafka_offset")
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (settings.data_dir / name).unlink(missing_ok=True)
    ledger, lake = Ledger(settings.effective_ledger_url), Lake(settings.data_dir / "lake")
    carry_out(settings, ledger, lake, plan_rebuild(settings, ledger, lake))
    assert current_log(ledger, topic.topic) == "frames~3"
    ledger.close()
    topic.send([frame(START_S + 20, "new")])
    assert run_tick(settings, topic).drain.delivered == 1
    rows = asked(settings, "SELECT * FROM frames WHERE uid != 'new' ORDER BY topic, kafka_offset")
    assert rows == before and wrong(settings) == []


def test_a_topic_that_is_forgotten_before_anything_was_read_keeps_its_name(make_settings):
    settings, topic = make_settings(), MemoryTopic(logs={0: []})
    run_tick(settings, topic)
    with open_workshop(settings) as shop:
        forget_topic(shop.ledger, topic.topic, "id-2")
        assert current_log(shop.ledger, topic.topic) == "frames"
        assert overview(shop.ledger, "frames").frames == 0


@pytest.mark.parametrize("log, topic", [("frames", "frames"), ("frames~2", "frames"), ("a.b_c-9~12", "a.b_c-9")])
def test_a_log_names_its_topic(log, topic):
    assert topic_of(log) == topic
    assert topic_of(log_after(log)) == topic


def test_logs_of_files_are_no_logs_of_topics():
    assert topic_of("file:/var/log/frames~2") == "file:/var/log/frames~2"


def test_the_newest_log_is_the_one_with_the_highest_number_and_no_other_topics():
    logs = ["frames", "frames~9", "frames~10", "frames.old~11", "other~12"]
    assert newest_log("frames", logs) == "frames~10"
    assert newest_log("fram", logs) is None
