"""Expiry: what was kept long enough goes, and what was computed from it stays as it was."""

from __future__ import annotations

import shutil
from random import Random

import pytest
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from uniq_pipeline.backfill import mark_range
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.errors import InputError, SettingError
from uniq_pipeline.expire import expire
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.files import live_files
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.move import admit
from uniq_pipeline.rebuild import carry_out, plan_rebuild
from uniq_pipeline.spans import Spans
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.verify import verify
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import Grain

DAY_S = 86_400
FIRST_S = 1_696_118_400  # 2023-10-01, a Sunday
DAYS = 26
NOW_S = FIRST_S + DAYS * DAY_S + 3600
WHATS = "frames=10,held=5,quarantine=5,hour_sets=8,minute_counts=14,hour_counts=18"


def traffic() -> list:
    rng = Random(5)
    return [
        frame(FIRST_S + day * DAY_S + hour * 3600 + minute * 60, f"u{rng.randrange(60)}")
        for day in range(DAYS)
        for hour in (1, 20)
        for minute in (0, 1, 30)
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twenty-six days in a zone whose midnights cut hours, counted and closed; some frames came far too late."""
    topic = MemoryTopic("frames", logs={0: []})
    topic.send(traffic())
    topic.send([frame(FIRST_S + day * DAY_S + 7, f"late-{day}") for day in range(3)])
    topic.send([frame(FIRST_S + DAYS * DAY_S + 60 * i, "last") for i in range(40)])
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"),
        timezone="Asia/Kolkata",
        lg_k=8,
        results_topic=None,
        duckdb_threads=1,
        allowed_lateness_s=DAY_S,  # between bursts of frames the watermark jumps by hours
    )
    run_tick(settings, topic, close_windows=True)
    return settings, topic


@pytest.fixture
def settings(prepared, data_dir):
    shutil.copytree(prepared[0].data_dir, data_dir, dirs_exist_ok=True)
    return prepared[0].model_copy(update={"data_dir": data_dir, "retention": WHATS})


def clock():
    return float(NOW_S)


def opened(settings):
    return open_workshop(settings, now=clock)


def expired(settings):
    # Batches are named by the wall clock, and so are the days of what is set aside: those never expire here.
    with opened(settings) as shop:
        report = expire(shop)
        assert report.failed == []
        return report


def ask(settings, sql):
    return ask_catalog(settings.catalog_path, sql).to_pylist()


def counts(settings):
    grains = ["day", "week", "month", "year"]
    return [ask(settings, f"FROM {grain}_counts ORDER BY window_start") for grain in grains]


def test_files_go_and_counts_stay(settings, prepared):
    run_tick(settings, prepared[1])
    before = counts(settings)
    with opened(settings) as shop:
        files = len(live_files(shop.ledger, "frames"))
    report = expired(settings)
    assert 29 <= report.files["frames"] <= 32, "each of the first sixteen days has two files"
    assert 32 <= report.files["hour_sets"] <= 36
    assert 20 <= report.files["minute_counts"] <= 24 and 6 <= report.files["hour_counts"] <= 8
    with opened(settings) as shop:
        assert len(live_files(shop.ledger, "frames")) == files - report.files["frames"]
        seen = overview(shop.ledger)
    assert seen.is_conserved and seen.expired == report.records["frames"] > 80
    run_tick(settings, prepared[1], close_windows=True)
    assert counts(settings) == before
    assert expired(settings).files.total() == 0, "once"


def test_nothing_goes_while_something_waits_to_be_computed_from_it(settings):
    with opened(settings) as shop:
        mark_range(shop, Grain.MINUTE, FIRST_S + 3 * DAY_S, FIRST_S + 3 * DAY_S + 7200)
        report = expire(shop)
        left = [path for path in live_files(shop.ledger, "frames") if "2023-10-04T01" in path]
    assert report.waiting["frames"] == 1 and left


def test_a_backfill_leaves_what_cannot_be_computed_any_more(settings, prepared):
    run_tick(settings, prepared[1])
    before = counts(settings)
    expired(settings)
    for grain in Grain:
        with opened(settings) as shop:
            mark_range(shop, grain, FIRST_S, NOW_S)
        run_tick(settings, prepared[1])
    after = counts(settings)
    assert [len(rows) for rows in after] == [len(rows) for rows in before]
    same = [[{**row, "computed_at": None} for row in rows] for rows in (*before, *after)]
    assert same[:4] == same[4:]


def test_a_frame_for_a_time_that_expired_is_held_and_is_not_admitted(settings, prepared):
    run_tick(settings, prepared[1])
    before = counts(settings)
    expired(settings)
    topic = MemoryTopic("frames-2", logs={0: []})
    topic.send([frame(FIRST_S + 5 * DAY_S + 60 * i, f"again-{i}") for i in range(30)])
    correcting = settings.model_copy(update={"topic": "frames-2", "very_late": "correct"})
    report = run_tick(correcting, topic)
    assert (report.drain.held, report.drain.frames) == (30, 0)
    with opened(correcting) as shop:
        moved = admit(shop, FIRST_S + 5 * DAY_S, FIRST_S + 6 * DAY_S)
    assert (moved.moved, moved.expired) == (0, 30)
    run_tick(correcting, topic)
    assert [[row["unique_users"] for row in rows] for rows in counts(settings)] == [
        [row["unique_users"] for row in rows] for rows in before
    ]


def test_a_set_that_cannot_be_built_again_leaves_no_exact_count(settings, prepared):
    """Hour sets of a day are gone, then a frame of it is admitted: the day has an estimate, and no guess."""
    only_sets = settings.model_copy(update={"retention": "hour_sets=8"})
    expired(only_sets)
    with opened(only_sets) as shop:
        assert admit(shop, FIRST_S, FIRST_S + DAY_S).frames >= 1
    run_tick(only_sets, prepared[1], close_windows=True)
    first, second, *_ = ask(settings, "SELECT unique_users, estimate FROM day_counts ORDER BY window_start")
    changed = [row for row in (first, second) if row["unique_users"] is None]
    assert changed and all(row["estimate"] > 0 for row in changed)


def test_the_audit_finds_nothing_wrong_before_and_after(settings, prepared):
    for _ in range(2):
        with opened(settings) as shop:
            report = verify(shop, sample=None)
        assert [fault.text for fault in report.faults] == []
        expired(settings)
        run_tick(settings, prepared[1], close_windows=True)


def test_ranges_that_need_what_is_gone_are_refused_and_others_answered(settings, prepared):
    run_tick(settings, prepared[1])
    zone = settings.timezone
    whole = ask(settings, "FROM unique_users('2023-10-03', '2023-10-15')")
    expired(settings)
    run_tick(settings, prepared[1])
    assert [row["users"] for row in ask(settings, "FROM unique_users('2023-10-03', '2023-10-15')")] == [
        pytest.approx(row["users"], rel=0.2) for row in whole
    ]
    for since in ("2023-10-03 01:30", "2023-10-03 02:00"):
        with pytest.raises(InputError, match="only coarser windows are kept"):
            ask(settings, f"FROM unique_users('{since}', '2023-10-15', zone := '{zone}')")
    assert ask(settings, "FROM unique_users('2023-10-13 01:00', '2023-10-15', zone := 'UTC')")[0]["frames"] > 0
    with pytest.raises(InputError, match="are not kept any more"):
        ask(settings, "FROM distinct_users('2023-10-03 01:00', '2023-10-15')")


def test_a_lost_ledger_is_rebuilt_and_what_expired_stays_expired(settings, prepared):
    run_tick(settings, prepared[1])
    before = counts(settings)
    expired(settings)
    keep_nothing = settings.model_copy(update={"gc_grace_h": 0.0})
    with open_workshop(keep_nothing) as shop:
        collect_garbage(keep_nothing, shop.ledger, shop.lake)
        seen = overview(shop.ledger)
    for end in ("", "-wal", "-shm"):
        settings.data_dir.joinpath(f"ledger.db{end}").unlink(missing_ok=True)
    ledger, lake = Ledger(settings.effective_ledger_url), Lake(settings.data_dir / "lake")
    plan = plan_rebuild(settings, ledger, lake)
    assert plan.losses == []
    carry_out(settings, ledger, lake, plan)
    ledger.close()
    run_tick(settings, prepared[1], close_windows=True)
    with opened(settings) as shop:
        again = overview(shop.ledger)
    assert (again.delivered, again.frames, again.held, again.expired) == (
        seen.delivered,
        seen.frames,
        seen.held,
        seen.expired,
    )
    after = counts(settings)
    for old, new in zip(before, after, strict=True):
        assert [(row["window_start"], row["frames"], row["hll"]) for row in new] == [
            (row["window_start"], row["frames"], row["hll"]) for row in old
        ]


@pytest.mark.parametrize(
    "value, said",
    [
        ("frame=3", "names, each once, of frames, held"),
        ("frames", "frames: whole days, 1 to 36500"),
        ("frames=0", "whole days"),
        ("frames=-1", "whole days"),
        ("frames=3,frames=4", "each once"),
    ],
)
def test_a_wrong_retention_says_what_is_allowed(monkeypatch, value, said):
    monkeypatch.setenv("UNIQ_RETENTION", value)
    with pytest.raises(SettingError, match=said):
        load_settings()


def test_spans_are_joined_where_they_touch():
    spans = Spans([(10, 20), (30, 40), (20, 25), (12, 14)])
    assert spans.joined == [(10, 25), (30, 40)]
    assert [spans.overlap(*pair) for pair in ((0, 10), (0, 11), (25, 30), (24, 31), (40, 50))] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert spans.cover(12, 25) and not spans.cover(12, 26) and not spans.cover(25, 30)
