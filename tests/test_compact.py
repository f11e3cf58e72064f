"""Compaction: fewer files, the same answers."""

from __future__ import annotations

import shutil
from copy import deepcopy
from random import Random

import pyarrow.parquet as pq
import pytest
from support.frames import MemoryTopic, frame, small_traffic
from support.ticks import OnceAt, run_tick

from uniq_pipeline.backfill import mark_range
from uniq_pipeline.compact import compact
from uniq_pipeline.config import Settings
from uniq_pipeline.drain import drain
from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger.files import batches_in, live_files
from uniq_pipeline.move import admit
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.verify import verify
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import Grain

T0 = 1_704_067_200 - 1800  # half an hour before a year ends
END = 2**40


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An hour of traffic, drained in batches of a minute or so, counted, and closed as far as it goes."""
    topic = MemoryTopic("frames")
    topic.send(list(small_traffic(7, frames_per_s=2, users=300).records_between(T0, T0 + 3600)), Random(7))
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), lg_k=8, batch_frames=300, results_topic=None, duckdb_threads=1
    )
    run_tick(settings, topic, close_windows=True)
    return settings, topic


@pytest.fixture
def settings(prepared, data_dir):
    shutil.copytree(prepared[0].data_dir, data_dir, dirs_exist_ok=True)
    return prepared[0].model_copy(update={"data_dir": data_dir})


@pytest.fixture
def topic(prepared):
    return deepcopy(prepared[1])


def merge(settings, *, closed_before_s=END, failpoint=lambda name: None):
    with open_workshop(settings, failpoint=failpoint) as shop:
        report = compact(shop, closed_before_s=closed_before_s)
        assert report.failed == []
        return report


QUESTIONS = [
    "SELECT * FROM frames ORDER BY kafka_partition, kafka_offset",
    "SELECT * FROM held_frames ORDER BY kafka_partition, kafka_offset",
    "SELECT * FROM quarantine ORDER BY kafka_partition, kafka_offset",
    "SELECT * EXCLUDE (computed_at) FROM minute_counts ORDER BY window_start",
    "SELECT * FROM unique_users('2023-12-31 23:31', '2024-01-01 00:10', exact_up_to := 1000000)",
    "SELECT * FROM retention('hour', '2023-12-31', '2024-01-02')",
]


def answers(settings, topic):
    run_tick(settings, topic)  # refreshes the catalog, and would say what changed
    return [ask_catalog(settings.catalog_path, question).to_pylist() for question in QUESTIONS]


def test_what_is_asked_is_answered_the_same_from_fewer_files(settings, topic):
    before = answers(settings, topic)
    with open_workshop(settings) as shop:
        files = {kind: live_files(shop.ledger, kind) for kind in ("frames", "held", "quarantine")}
    report = merge(settings)
    assert report.files > 10 and report.merged_into <= 4
    assert answers(settings, topic) == before
    with open_workshop(settings) as shop:
        for kind, paths in files.items():
            assert len(live_files(shop.ledger, kind)) <= 2 < len(paths)


def test_a_merged_file_is_in_order_of_event_time(settings, topic):
    merge(settings)
    with open_workshop(settings) as shop:
        for path in live_files(shop.ledger, "frames"):
            times = pq.read_table(shop.lake.absolute(path), partitioning=None)["event_time"].to_pylist()
            assert times == sorted(times) and len(times) > 1000


def test_windows_come_out_the_same_when_they_are_computed_again(settings, topic):
    before = answers(settings, topic)
    merge(settings)
    with open_workshop(settings) as shop:
        assert mark_range(shop, Grain.MINUTE, T0, T0 + 3600) >= 60
    report = run_tick(settings, topic)
    assert report.refreshed[0].computed >= 60
    assert sum(len(refreshed.changed) for refreshed in report.refreshed) == 0
    assert answers(settings, topic) == before


def test_the_audit_finds_nothing_wrong_in_merged_files(settings, topic):
    merge(settings)
    run_tick(settings, topic, close_windows=True)
    with open_workshop(settings) as shop:
        report = verify(shop, sample=None)
    assert [fault.text for fault in report.faults] == []
    assert report.rows >= len(topic.delivered)


def test_an_hour_that_is_not_over_is_left_alone(settings, topic):
    merge(settings, closed_before_s=T0 + 1800)
    with open_workshop(settings) as shop:
        hours = [path.split("/")[1] for path in live_files(shop.ledger, "frames")]
    assert hours.count("hour=2023-12-31T23") == 1
    assert hours.count("hour=2024-01-01T00") > 2


def test_a_few_late_files_do_not_have_the_whole_hour_written_again(settings, topic):
    merge(settings)
    correcting = settings.model_copy(update={"very_late": "correct"})
    with open_workshop(correcting) as shop:
        for i in range(8):
            topic.send([frame(T0 + 60, f"late-{i}")])
            drain(correcting, shop.ledger, shop.lake, topic)
            assert compact(shop, closed_before_s=END).merged_into == (1 if i == 7 else 0)


def test_of_a_merged_file_the_ledger_knows_the_batches(settings, topic):
    with open_workshop(settings) as shop:
        (hour,) = {path.split("/")[1] for path in live_files(shop.ledger, "frames") if "T23" in path}
        batches = [path for path in live_files(shop.ledger, "frames") if hour in path]
    merge(settings)
    with open_workshop(settings) as shop:
        (merged,) = [path for path in live_files(shop.ledger, "frames") if hour in path]
        names = {path.rpartition("/")[2].removesuffix(".parquet") for path in batches}
        assert set(batches_in(shop.ledger, merged.rpartition("/")[2].removesuffix(".parquet"))) == names


def test_of_two_that_merge_the_same_hour_one_goes_without(settings, topic):
    before = answers(settings, topic)
    first = OnceAt("compact.before_commit", lambda: merge(settings))
    report = merge(settings, failpoint=first)
    assert first.happened
    assert report.merged_into < 4
    assert answers(settings, topic) == before


def test_frames_admitted_while_their_file_is_merged_count_once(settings, topic):
    def meanwhile():
        with open_workshop(settings) as shop:
            assert admit(shop, 0, END).frames > 0

    with open_workshop(settings) as shop:
        held = sum(shop.lake.read(path).num_rows for path in live_files(shop.ledger, "held"))
    merge(settings, failpoint=OnceAt("compact.before_write", meanwhile, nth=3))
    run_tick(settings, topic)
    merge(settings)
    run_tick(settings, topic)
    (row,) = ask_catalog(
        settings.catalog_path,
        "SELECT count(*) AS rows, count(DISTINCT (kafka_partition, kafka_offset)) AS places FROM frames",
    ).to_pylist()
    quarantined = ask_catalog(settings.catalog_path, "SELECT count(*) AS n FROM quarantine").to_pylist()[0]["n"]
    assert held > 0
    assert row["rows"] == row["places"] == len(topic.delivered) - quarantined


def test_an_admit_that_finds_its_file_merged_says_lost_race_and_can_be_done_again(settings, topic):
    def admit_all(failpoint=lambda name: None):
        with open_workshop(settings, failpoint=failpoint) as shop:
            return admit(shop, 0, END)

    with pytest.raises(LostRace, match="another run moved rows of the same files"):
        admit_all(OnceAt("move.before_commit", lambda: merge(settings)))
    assert admit_all().frames > 0


def test_a_file_that_cannot_be_read_is_named_and_the_other_hours_are_merged(settings, topic):
    with open_workshop(settings) as shop:
        damaged = next(path for path in live_files(shop.ledger, "frames") if "T23" in path)
        shop.lake.absolute(damaged).write_bytes(b"PAR1 and then nothing")
        report = compact(shop, closed_before_s=END)
        assert [damaged in failed for failed in report.failed] == [True]
        hours = [path.split("/")[1] for path in live_files(shop.ledger, "frames")]
    assert hours.count("hour=2024-01-01T00") == 1
    assert hours.count("hour=2023-12-31T23") > 2
