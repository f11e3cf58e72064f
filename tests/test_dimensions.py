"""Counts by dimension: the values of a frame's further root keys, and what counts under each of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from datasketches import hll_sketch, tgt_hll_type
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audit import GRAINS as ALL_GRAINS
from support.audit import audit, read_back
from support.dimensions import count_anew, dimension_problems, value_of
from support.frames import MemoryTopic, Sent, frame, small_traffic
from support.ticks import OnceAt, run_tick

from uniq_pipeline.backfill import mark_range
from uniq_pipeline.cli.main import main
from uniq_pipeline.config import Settings, TsUnit, load_settings
from uniq_pipeline.demo.traffic import Kind, Record
from uniq_pipeline.errors import SettingError
from uniq_pipeline.frames import judge_frames, parse_frames
from uniq_pipeline.ingest import file_log, load_file
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.move import admit, replay, withdraw
from uniq_pipeline.rebuild import carry_out, plan_rebuild
from uniq_pipeline.schemas import ENTRIES, RESULT_SCHEMA
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import Grain, from_epoch

T0 = 1_704_067_200 - 300  # five minutes before an hour, a day, a month and a year end
NAMES = ("country", "platform")
GRAINS = ("minute", "hour")
COUNTRIES = ["DE", "DE", "DE", "DE", "CH", "CH", "FR", "IT", "US", None, 42, "(other)", "(none)", "x" * 65]


@pytest.fixture
def minutes_and_hours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser grains pass the same code as hours, for several times the time."""
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


def values(payload: bytes, *names: str) -> tuple[str, ...]:
    """By the extractor, and by the judge: the same."""
    (found,) = parse_frames([payload], dimensions=names).values
    assert judge_frames([payload], dimensions=names).values == [found]
    return found


@pytest.mark.parametrize(
    "found, value",
    [
        ('"DE"', "DE"),
        ('"\\u0044E"', "DE"),
        ('" de "', " de "),
        ('"\\u0000"', "\0"),
        ("7", "7"),
        ("-0", "0"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "(none)"),
        ("-9223372036854775809", "(none)"),
        ("true", "true"),
        ("false", "false"),
        ("null", "(none)"),
        ('""', "(none)"),
        ("1.0", "(none)"),
        ("1e2", "(none)"),
        ("[]", "(none)"),
        ('["DE"]', "(none)"),
        ('{"country":"DE"}', "(none)"),
        (f'"{"é" * 64}"', "é" * 64),
        (f'"{"é" * 65}"', "(other)"),
        ('"(none)"', "(none)"),
        ('"(other)"', "(other)"),
    ],
)
def test_each_kind_of_json_value_has_its_value(found, value):
    assert values(f'{{"ts":1,"country":{found},"uid":"a"}}'.encode(), "country") == (value,)


def test_only_the_roots_own_key_counts_and_of_a_repeated_one_the_last():
    assert values(b'{"ts":1,"uid":"a","x":{"country":"DE"},"COUNTRY":"CH","y":["country","FR"]}', "country") == (
        "(none)",
    )
    assert values(b'{"country":"DE","ts":1,"uid":"a","country":"CH"}', "country") == ("CH",)
    assert values(b'{"country":"DE","ts":1,"uid":"a","country":[1]}', "country") == ("(none)",)
    assert values(b'{"country":[1],"ts":1,"uid":"a","country":"CH"}', "country") == ("CH",)
    assert values(rb'{"ts":1,"uid":"a","c\u006funtry":"DE"}', "country") == ("DE",)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\tb", "é ü", "type", "d0", "d1", "x" * 64, "ts ", "0"])
def test_any_root_key_may_be_a_dimension(name):
    payload = json.dumps({"ts": 1, "uid": "a", name: "DE", "d1": "no"}).encode()
    assert values(payload, name) == (json.loads(payload)[name],)
    assert values(payload, "d0", name)[1] == json.loads(payload)[name]


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b'{"ts":1,"country":"DE"}', b'{"uid":"a","country":"DE"}', b'{"ts":1,"uid":[],"country":1}']
)
def test_dimensions_make_no_frame_and_break_none(payload):
    assert parse_frames([payload], dimensions=NAMES).rejects == parse_frames([payload]).rejects != []
    good = b'{"ts":1,"uid":"a","country":{"x":[1e5,null]}}'
    assert parse_frames([payload, good], dimensions=NAMES).uids == ["a"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=70),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*NAMES, "x"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from([*NAMES, "Country", "x"]), JSON, max_size=4), max_size=4), st.booleans()
)
def test_extractor_and_judge_give_the_values_that_the_rule_says(roots, as_ascii):
    payloads = [json.dumps({**root, "ts": 1, "uid": "a"}, ensure_ascii=as_ascii).encode() for root in roots]
    expected = [tuple(value_of(root.get(name)) for name in NAMES) for root in roots]
    assert parse_frames(payloads, dimensions=NAMES).values == expected
    assert judge_frames(payloads, dimensions=NAMES).values == expected


# Settings.


def test_dimensions_are_root_keys_in_order_of_name():
    assert load_settings().dimension_keys == ()
    assert load_settings(dimensions=" platform , country").dimension_keys == ("country", "platform")
    assert load_settings(dimensions=" ").dimension_keys == ()


@pytest.mark.parametrize(
    "given, complaint",
    [
        ("a,b,c,d,e", "at most 4"),
        ("a,,b", "1 to 64 characters"),
        ("a" * 65, "1 to 64 characters"),
        ("country,ts", "ts is no dimension"),
        ("uid", "uid is no dimension"),
        ("a, a", "each root key once"),
        ("\udcff", "UTF-8"),
    ],
)
def test_a_wrong_list_of_dimensions_is_refused_with_the_reason(given, complaint):
    with pytest.raises(SettingError, match=f"UNIQ_DIMENSIONS.*{complaint}"):
        load_settings(dimensions=given)


@pytest.mark.parametrize("given", [0, 1001])
def test_the_number_of_values_has_bounds(given):
    with pytest.raises(SettingError, match="UNIQ_DIMENSION_VALUES"):
        load_settings(dimension_values=given)


# Counts, through whole ticks.


def with_values(records: Iterable[Record], seed: int, extra: int = 0) -> list[Record]:
    """The records with a country and sometimes a platform; mostly the country of a user is one."""
    rng = Random(seed)
    found = []
    for record in records:
        if record.kind is Kind.BAD:
            found.append(record)
            continue
        user = Random(record.uid)
        country: Any = user.choice(COUNTRIES) if rng.random() < 0.9 else rng.choice(COUNTRIES)
        if extra and rng.random() < 0.3:
            country = f"c{rng.randrange(extra)}"
        fields = {"country": country}
        if rng.random() < 0.8:
            fields["platform"] = user.choice(["ios", "web", True])
        decoy = b'"x":{"country":"no","platform":"no"},'
        payload = b"{" + json.dumps(fields)[1:-1].encode() + b"," + decoy + record.payload[1:]
        found.append(record._replace(payload=payload))
    return found


def send(topic: MemoryTopic, records: Sequence[Record], seed: int = 1) -> None:
    rng = Random(seed)
    for record in records:
        log = topic.logs[rng.choice(sorted(topic.logs))]
        log.append(Sent(int(record.arrival_s * 1000), record, record.payload))


def payloads(topic: MemoryTopic) -> dict[tuple[int, int], bytes]:
    return {place: sent.payload for place, sent in topic.delivered.items()}


def problems(made: Settings, topic: MemoryTopic, grains: Sequence[str] = GRAINS) -> list[str]:
    stored = read_back(made, [])
    found = audit(made, topic.delivered, grains=grains)
    return found + dimension_problems(made, stored, payloads(topic), grains)


def entries(made: Settings, grain: str, start_s: int | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    rows = read_back(made, []).results[grain]
    (start,) = rows if start_s is None else (start_s,)
    return {(e["dimension"], e["value"]): e for e in rows[start]["by_dimension"]}


def story(topic: MemoryTopic, seed: int, length_s: int = 900, extra: int = 0) -> None:
    """Traffic over the end of an hour, a day, a month and a year, then a later minute that closes them all."""
    records = list(small_traffic(seed, frames_per_s=3, users=120).records_between(T0, T0 + length_s))
    later = T0 + 400 * 86_400
    records += [frame(later + i, f"later-{i}") for i in range(64)]
    send(topic, with_values(records, seed, extra), seed)


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kolkata"])
def test_every_value_of_every_window_is_counted_as_plain_python_counts_it(make_settings, timezone):
    made = make_settings(dimensions="country,platform", timezone=timezone)
    topic = MemoryTopic(made.topic)
    story(topic, 1)
    if timezone != "UTC":  # across 18:30 UTC, where a day begins there
        records = small_traffic(2, frames_per_s=3).records_between(
            T0 + 401 * 86_400 - 20_000, T0 + 401 * 86_400 - 18_900
        )
        send(topic, with_values(records, 2))
    run_tick(made, topic, close_windows=True)
    assert problems(made, topic, ALL_GRAINS) == []
    closed = [row for row in read_back(made, []).results["hour"].values() if row["unique_users"] is not None]
    exact = [e["unique_users"] for row in closed for e in row["by_dimension"] if e["value"] != "(other)"]
    assert len(closed) >= 2 and None not in exact and sum(exact) > 100


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_the_states_are_those_of_the_library(make_settings):
    made = make_settings(dimensions="country", lg_k=12)
    topic = MemoryTopic(made.topic)
    story(topic, 3)
    run_tick(made, topic, close_windows=True)
    for row in read_back(made, []).results["hour"].values():
        users: dict[str, set[str]] = {}
        start_s = int(row["window_start"].timestamp())
        for sent in topic.delivered.values():
            if sent.truth.kind is Kind.BAD or sent.truth.kind is not Kind.ORDINARY:
                continue
            if start_s <= sent.truth.event_s < start_s + 3600:
                users.setdefault(value_of(json.loads(sent.payload)["country"]), set()).add(sent.truth.uid)
        for entry in row["by_dimension"]:
            sketch = hll_sketch(12, tgt_hll_type.HLL_8, True)
            for uid in users.get(entry["value"], ()):
                sketch.update(uid)
            stored = hll_sketch.deserialize(entry["hll"])
            # Late frames may be held or counted: the ordinary ones are all in.
            ordinary, found = (list(s.serialize_updatable()[40:]) for s in (sketch, stored))
            assert all(a <= b for a, b in zip(ordinary, found, strict=True))
            assert entry["estimate"] == pytest.approx(stored.get_estimate(), rel=0.02, abs=0.5)


@pytest.mark.parametrize("most", [1, 3])
def test_values_beyond_the_bound_are_together_and_the_bounds_hold_all_the_same(make_settings, most):
    made = make_settings(dimensions="country,platform", dimension_values=most, lg_k=10)
    topic = MemoryTopic(made.topic)
    story(topic, 4, extra=30)
    run_tick(made, topic, close_windows=True)
    assert problems(made, topic, ALL_GRAINS) == []
    stored = read_back(made, [])
    names = sorted({value for row in stored.results["minute"].values() for _, value in keys(row)})
    assert len(names) > most + 1, "another value is ahead in another minute"
    frames = [
        (int(row["event_time"].timestamp()), row["uid"], dict(row["dimensions"])) for row in stored.files["frames"]
    ]
    truth = count_anew(made, frames).truth
    hidden = within = 0
    for grain in ("hour", "day", "week", "month", "year"):
        for start_s, row in stored.results[grain].items():
            assert sum(e["frames"] for e in row["by_dimension"]) == row["frames"] * len(NAMES)
            for e in row["by_dimension"]:
                if e["value"] != "(other)":
                    users = len(truth[grain][start_s][e["dimension"], e["value"]])
                    within += e["estimate_lower"] <= users <= e["estimate_upper"]
                    hidden += 1
    assert hidden and within >= 0.95 * hidden


def keys(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(e["dimension"], e["value"]) for e in row["by_dimension"]]


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_users_hidden_under_other_widen_the_upper_bound(make_settings):
    """In one minute DE is ahead, in the other it is not."""
    made = make_settings(dimensions="country", dimension_values=1, lg_k=12)
    topic = MemoryTopic(made.topic, logs={0: []})
    first = [("DE", f"a{i}") for i in range(30)] + [("CH", "b")]
    second = [("FR", f"c{i}") for i in range(25)] + [("DE", f"d{i}") for i in range(20)]
    for minute, pairs in ((0, first), (60, second)):
        send(topic, [with_country(T0 + minute + i % 60, uid, country) for i, (country, uid) in enumerate(pairs)])
    run_tick(made, topic)
    (hour,) = read_back(made, []).results["hour"].values()
    assert keys(hour) == [("country", "(other)"), ("country", "DE")]
    other, named = hour["by_dimension"]
    assert (named["frames"], other["frames"]) == (30, 46)
    assert named["estimate"] == pytest.approx(30, abs=1) and named["estimate_lower"] <= 30
    assert named["estimate_upper"] >= 50, "20 more of DE are under (other)"
    minute = entries(made, "minute", T0)
    assert minute["country", "DE"]["unique_users"] == 30 and minute["country", "DE"]["estimate_upper"] <= 33


def with_country(event_s: int, uid: str, country: str, **options: Any) -> Record:
    record = frame(event_s, uid, **options)
    return record._replace(payload=b'{"country":"%s",%s' % (country.encode(), record.payload[1:]))


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_values_with_as_many_frames_are_kept_in_order_of_their_text(make_settings):
    made = make_settings(dimensions="country", dimension_values=2)
    topic = MemoryTopic(made.topic, logs={0: []})
    send(
        topic, [with_country(T0 + i, f"u{i}", country) for i, country in enumerate(["b", "a", "é", "B", "a", "b", "B"])]
    )
    run_tick(made, topic)
    assert list(entries(made, "minute")) == [("country", "(other)"), ("country", "B"), ("country", "a")]


@pytest.mark.usefixtures("minutes_and_hours_only")
@pytest.mark.parametrize("seed", [1, 2])
def test_batches_and_kills_change_no_entry(make_settings, data_dir, seed):
    whole = make_settings(dimensions="country,platform", data_dir=data_dir / "whole", dimension_values=4)
    pieces = make_settings(
        dimensions="country,platform",
        data_dir=data_dir / "pieces",
        dimension_values=4,
        batch_frames=100,
        topic=whole.topic,
    )
    topic = MemoryTopic(whole.topic)
    story(topic, seed, 400)
    # What awaits proof is in the clock when a batch ends here.
    run_tick(whole, topic, close_windows=True)
    rng = Random(seed)
    for point in ("drain.before_commit", "drain.in_commit", "count.before_commit", "count.in_commit"):
        with pytest.raises(Killed):
            run_tick(pieces, topic, failpoint=OnceAt(point, die, nth=rng.randint(1, 2)))
    run_tick(pieces, topic, close_windows=True)
    assert problems(pieces, topic) == []
    found, again = read_back(whole, []), read_back(pieces, [])
    for grain, rows in found.results.items():
        assert {s: row["by_dimension"] for s, row in rows.items()} == {
            s: row["by_dimension"] for s, row in again.results[grain].items()
        }


class Killed(BaseException):
    pass


def die() -> None:
    raise Killed


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_a_frame_that_awaits_proof_has_its_values_when_a_later_batch_proves_it(make_settings):
    made = make_settings(dimensions="country,platform")
    topic = MemoryTopic(made.topic, logs={0: []})
    night = 8 * 3600
    # Kafka's clock says nothing: what comes after the night is held until the next looks prove it.
    send(topic, [with_country(T0 + i, f"u{i}", "DE", arrival_s=0.0) for i in range(64)])
    send(topic, [with_country(T0 + night + i, f"v{i}", "CH", arrival_s=0.0) for i in range(10)])
    run_tick(made, topic)
    assert read_back(made, []).files["held"][0]["dimensions"] == [("country", "CH"), ("platform", "(none)")]
    clock = json.loads(read_back(made, []).tables["topic_partitions"][0]["clock"])
    assert clock["pending"][0]["dimensions"] == {"country": "CH", "platform": "(none)"}
    send(topic, [with_country(T0 + night + 10 + i, f"w{i}", "CH", arrival_s=0.0) for i in range(40)])
    run_tick(made, topic)
    stored = read_back(made, [])
    assert dimension_problems(made, stored, payloads(topic), GRAINS) == []
    minute = (T0 + night) // 60 * 60
    assert entries(made, "minute", minute)["country", "CH"]["frames"] == 50


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_late_admitted_withdrawn_and_replayed_frames_change_their_entries(make_settings):
    made = make_settings(dimensions="country,platform")
    topic = MemoryTopic(made.topic, logs={0: []})
    send(topic, [with_country(T0 + i, f"u{i}", "DE") for i in range(300)])
    run_tick(made, topic)
    before = read_back(made, []).results["minute"][T0 + 180]
    # Late, but within two minutes; then very late; then unreadable for now.
    send(topic, [with_country(T0 + 180, "late", "CH", arrival_s=T0 + 301.0)])
    send(topic, [with_country(T0, "very-late", "FR", arrival_s=T0 + 301.0)])
    broken = with_country(T0 * 1000 + 181_000, "ms", "IT", arrival_s=T0 + 302.0)
    send(topic, [broken._replace(kind=Kind.BAD, event_s=T0 + 181)])
    run_tick(made, topic)
    after = read_back(made, []).results["minute"][T0 + 180]
    assert after["revision"] > before["revision"]
    assert keys(after) == [("country", "CH"), ("country", "DE"), ("platform", "(none)")]
    first = entries(made, "minute", T0)
    assert ("country", "FR") not in first

    with open_workshop(made) as shop:
        assert admit(shop, 0, 1 << 40).frames == 1
    run_tick(made, topic)
    assert entries(made, "minute", T0)["country", "FR"]["unique_users"] == 1
    with open_workshop(made) as shop:
        assert withdraw(shop, 0, 1 << 40).held == 1
    run_tick(made, topic)
    assert {key: e["hll"] for key, e in entries(made, "minute", T0).items()} == {
        key: e["hll"] for key, e in first.items()
    }

    with open_workshop(made.model_copy(update={"ts_unit": TsUnit.MILLISECONDS})) as shop:
        assert replay(shop).frames == 1
    run_tick(made, topic)
    assert entries(made, "minute", T0 + 180)["country", "IT"]["unique_users"] == 1
    assert entries(made, "hour", T0 - T0 % 3600)["country", "IT"]["frames"] == 1


def entry(value: str = "DE", users: int | None = 2, *, frames: int = 3, hll: bytes = b"x") -> dict[str, Any]:
    counted = {"dimension": "country", "value": value, "frames": frames, "unique_users": users, "hll": hll}
    return {**counted, "estimate": 2.0, "estimate_lower": 2.0, "estimate_upper": 3.0}


@pytest.mark.parametrize(
    "before, after, changed",
    [
        ([entry()], [entry()], False),
        ([], [], False),
        (None, [], True),
        (None, [entry()], True),
        ([entry()], [], True),
        ([entry("CH"), entry()], [entry()], True),
        ([entry()], [entry("CH")], True),
        ([entry()], [entry(frames=4)], True),
        ([entry()], [entry(hll=b"y")], True),
        ([entry()], [entry(users=3)], True),
        ([entry(users=None)], [entry()], False),
        ([entry()], [entry(users=None)], False),
    ],
)
def test_an_entry_that_only_became_exact_is_no_other_answer(before, after, changed):
    instant = from_epoch(60)
    previous = pa.Table.from_pylist([{"window_start": instant, "by_dimension": before}], RESULT_SCHEMA)
    computed = pa.table({"window_start_s": [60], "by_dimension": pa.array([after], ENTRIES)})
    with Warehouse() as warehouse:
        warehouse.register("previous", previous)
        warehouse.register("computed", computed)
        assert warehouse.run("count/changed_entries").to_pylist() == [
            {"window_start_s": 60, "entries_changed": changed}
        ]


# Other settings on the same data.


def recount(made: Settings, topic: MemoryTopic) -> None:
    with open_workshop(made) as shop:
        mark_range(shop, Grain.MINUTE, 0, 1 << 40)
    run_tick(made, topic, close_windows=True)


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_a_dimension_added_later_counts_the_frames_that_were_read_since(make_settings):
    one = make_settings(dimensions="country")
    two = one.model_copy(update={"dimensions": "platform,country"})
    topic = MemoryTopic(one.topic, logs={0: []})
    send(topic, [with_country(T0 + i, f"u{i}", "DE") for i in range(100)])
    run_tick(one, topic)
    send(topic, [with_country(T0 + 100 + i, f"u{i}", "CH") for i in range(100)])
    run_tick(two, topic)
    assert set(entries(two, "minute", T0)) == {("country", "DE")}, "nothing reached it since"
    cut = entries(two, "minute", T0 + 60)
    frames = {("country", "CH"): 20, ("country", "DE"): 40, ("platform", "(none)"): 20}
    assert {key: e["frames"] for key, e in cut.items()} == frames
    hour = entries(two, "hour")
    assert {key: e["frames"] for key, e in hour.items()} == {
        ("country", "CH"): 100,
        ("country", "DE"): 100,
        ("platform", "(none)"): 100,
    }
    before = read_back(two, []).results
    recount(two, topic)
    assert read_back(two, []).results["minute"][T0] == before["minute"][T0], "the frames had no value, and have none"


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_a_dimension_taken_away_is_gone_where_it_is_counted_again_and_may_come_back(make_settings):
    made = make_settings(dimensions="country,platform")
    fewer, none = (made.model_copy(update={"dimensions": names}) for names in ("platform", ""))
    topic = MemoryTopic(made.topic)
    story(topic, 7, 400)
    run_tick(made, topic, close_windows=True)
    before = read_back(made, []).results
    recount(fewer, topic)
    stored = read_back(fewer, []).results
    assert {name for rows in stored.values() for row in rows.values() for name, _ in keys(row)} == {"platform"}
    assert all(
        row["unique_users"] is None or all(e["unique_users"] for e in row["by_dimension"] if e["value"] != "(other)")
        for row in stored["hour"].values()
    )
    recount(none, topic)
    stored = read_back(none, []).results
    assert {row["by_dimension"] for rows in stored.values() for row in rows.values()} == {None}
    assert audit(none, topic.delivered, grains=GRAINS) == []
    assert {row["users_by"] for row in read_back(none, []).tables["uid_sets"]} == {None}
    recount(made, topic)
    assert problems(made, topic) == []
    again = read_back(made, []).results
    for grain, rows in before.items():
        for start_s, row in rows.items():
            assert row["by_dimension"] == again[grain][start_s]["by_dimension"]
            assert row["unique_users"] == again[grain][start_s]["unique_users"]
            assert again[grain][start_s]["reason"] == (
                "backfill" if grain == "minute" else again[grain][start_s]["reason"]
            )


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_a_lost_ledger_is_rebuilt_with_its_entries(make_settings):
    made = make_settings(dimensions="country,platform", dimension_values=3, batch_frames=150)
    topic = MemoryTopic(made.topic)
    story(topic, 8, 400)
    run_tick(made, topic, close_windows=True)
    before = read_back(made, [])
    for end in ("", "-wal", "-shm"):
        made.data_dir.joinpath(f"ledger.db{end}").unlink(missing_ok=True)
    ledger, lake = Ledger(made.effective_ledger_url), Lake(made.data_dir / "lake")
    carry_out(made, ledger, lake, plan_rebuild(made, ledger, lake))
    ledger.close()
    run_tick(made, topic, close_windows=True)
    assert problems(made, topic) == []
    assert read_back(made, []).results == before.results, "also their revisions, times and history"


def test_the_command_count_shows_each_value_and_ingest_loads_it(tmp_path, monkeypatch, capsys, make_settings):
    monkeypatch.setenv("UNIQ_DIMENSIONS", "country")
    monkeypatch.setenv("UNIQ_DIMENSION_VALUES", "1")
    lines = [with_country(T0 + i, f"u{i % 10}", ["DE", "DE", "CH", "FR"][i % 4]).payload for i in range(40)]
    path = tmp_path / "frames.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    monkeypatch.setattr("sys.argv", ["uniq-pipeline", "count", "--grain", "hour", str(path)])
    main()
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(e["value"], e["frames"], e["unique_users"]) for e in row["by_dimension"]] == [
        ("(other)", 20, 10),
        ("DE", 20, 10),
    ]
    assert set(row["by_dimension"][0]) == {
        "dimension",
        "value",
        "frames",
        "unique_users",
        "estimate",
        "estimate_lower",
        "estimate_upper",
    }
    monkeypatch.delenv("UNIQ_DIMENSION_VALUES")
    made = make_settings(dimensions="country")
    with open_workshop(made) as shop:
        for _ in load_file(shop, file_log(shop.ledger, str(path))):
            pass
    run_tick(made, MemoryTopic(made.topic, logs={}))
    assert {key: e["frames"] for key, e in entries(made, "minute").items()} == {
        ("country", "CH"): 10,
        ("country", "DE"): 20,
        ("country", "FR"): 10,
    }


def test_a_ledger_of_an_earlier_version_is_refused_by_name(make_settings):
    made = make_settings()
    with open_workshop(made):
        pass
    with sqlite3.connect(made.data_dir / "ledger.db") as connection:
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    with pytest.raises(SettingError, match="schema=2, not 5"), open_workshop(made):
        pass


@pytest.mark.usefixtures("minutes_and_hours_only")
def test_no_dimensions_no_columns_and_nothing_else_changes(make_settings, data_dir):
    plain = make_settings(data_dir=data_dir / "plain")
    some = make_settings(data_dir=data_dir / "some", dimensions="country,platform", topic=plain.topic)
    topic = MemoryTopic(plain.topic)
    story(topic, 6)
    for made in (plain, some):
        run_tick(made, topic, close_windows=True)
    without, having = read_back(plain, []), read_back(some, [])
    assert {row["by_dimension"] for rows in without.results.values() for row in rows.values()} == {None}
    for kind in ("frames", "held"):
        assert {row["dimensions"] for row in without.files[kind]} == {None}
        assert all(row["dimensions"] for row in having.files[kind])
    assert {row["users_by"] for row in without.tables["uid_sets"]} == {None}
    ignored = {"by_dimension", "computed_at", "history"}
    for grain, rows in without.results.items():
        for start_s, row in rows.items():
            other = having.results[grain][start_s]
            assert {k: v for k, v in row.items() if k not in ignored} == {
                k: v for k, v in other.items() if k not in ignored
            }
    assert {key: sorted(set(uids)) for key, uids in having.sets.items()} == without.sets
