"""The demo's traffic: what its frames look like, and that the truth told about them is true."""

import json
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniq_pipeline.demo.traffic import FRAMES_PER_CHUNK, Damage, Kind, Record, Traffic, TrafficProfile

START_S = 1_700_000_000
MIXED = TrafficProfile(frames_per_s=4_000, late_share=0.05, flip_share=0.05, bad_share=0.05, seed=7)


def root_members(payload: bytes) -> list[tuple[str, Any]]:
    """The root object's members with duplicates kept; nested objects come as such lists too."""
    members = json.loads(payload, object_pairs_hook=list)
    assert isinstance(members, list)
    return members


def root_values(payload: bytes, key: str) -> list[Any]:
    return [value for name, value in root_members(payload) if name == key]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return Traffic(MIXED).records_between(START_S, START_S + 3)


@pytest.fixture(scope="module")
def good(records: list[Record]) -> list[Record]:
    return [record for record in records if record.kind is not Kind.BAD]


def shares(records: list[Record]) -> dict[Kind, float]:
    return {kind: n / len(records) for kind, n in Counter(r.kind for r in records).items()}


# What a frame looks like


def test_full_frames_are_about_2_kb(good):
    sizes = [len(record.payload) for record in good]
    assert 1_900 <= sum(sizes) / len(sizes) <= 2_100
    assert 1_500 < min(sizes) and max(sizes) < 2_600


def test_small_frames_are_about_42_bytes():
    frames = Traffic(TrafficProfile(small=True, bad_share=0)).between(START_S, START_S + 5)
    assert {len(frame) for frame in frames} == {42, 44, 46}
    assert 42 <= sum(map(len, frames)) / len(frames) < 43.5


@pytest.mark.parametrize("small", [False, True])
def test_every_good_frame_has_one_root_ts_and_one_root_uid_that_tell_the_truth(small):
    profile = TrafficProfile(frames_per_s=1_500, small=small, late_share=0.1, flip_share=0.1, bad_share=0)
    for record in Traffic(profile).records_between(START_S, START_S + 1):
        assert b"\n" not in record.payload
        (ts,), (uid,) = root_values(record.payload, "ts"), root_values(record.payload, "uid")
        assert (int(float(ts)), uid) == (record.written_ts, record.uid)
        assert orjson.loads(record.payload)["uid"] == record.uid


def test_ts_is_an_integer_a_float_or_a_string_of_digits(good):
    types = Counter(type(root_values(record.payload, "ts")[0]) for record in good)
    assert set(types) == {int, float, str}
    assert types[int] / len(good) == pytest.approx(0.70, abs=0.05)
    assert types[float] / len(good) == pytest.approx(0.15, abs=0.04)


def test_ts_and_uid_stand_anywhere_among_the_root_keys(good):
    orders = [[name for name, _ in root_members(record.payload)] for record in good[:2_000]]
    places = Counter(names.index("ts") for names in orders)
    assert len(places) > 12
    ts_first = sum(names.index("ts") < names.index("uid") for names in orders) / len(orders)
    assert 0.4 < ts_first < 0.6


def test_every_full_frame_has_nested_and_quoted_decoys(good):
    for record in good[:500]:
        frame = json.loads(record.payload)
        assert frame["session"]["started"].keys() >= {"ts", "uid"}
        assert frame["items"][0]["uid"] != record.uid
        assert {"ts", "uid"} <= json.loads(frame["raw"]).keys()


def test_frames_hold_escapes_repeated_keys_and_text_in_many_scripts(good):
    everything = b"".join(record.payload for record in good[:2_000])
    for text in (r"\n", r"\"", r"\\", r"\u00e9", r"\ud83d\ude", r'"\u0075id"', r'"t\u0073"', "東京", "🎉"):
        assert text.encode() in everything, text
    for text in (b"null", b"true", b"false", b"e-09", b'"level6"'):
        assert text in everything, text
    assert any(len(root_values(record.payload, "tags")) > 1 for record in good)


@pytest.mark.parametrize("small", [False, True])
def test_every_damage_occurs_and_makes_the_frame_uncountable(small):
    profile = TrafficProfile(frames_per_s=500, small=small, late_share=0, flip_share=0, bad_share=1)
    records = Traffic(profile).records_between(START_S, START_S + 2)
    assert {record.damage for record in records} == set(Damage)
    for record in records:
        assert record.payload and record.written_ts is None
        if record.damage in (Damage.TRUNCATED, Damage.INVALID_UTF8):
            with pytest.raises(ValueError):
                json.loads(record.payload)
            with pytest.raises(ValueError):
                orjson.loads(record.payload)
        elif record.damage is Damage.ARRAY:
            assert isinstance(orjson.loads(record.payload), list)
        elif record.damage is Damage.MISSING_UID:
            assert root_values(record.payload, "uid") == []
        else:
            assert root_values(record.payload, "ts") == [None]


# When it arrives, and how late


def test_frames_are_as_many_as_the_rate_says_and_in_arrival_order(records):
    assert len(records) == 3 * MIXED.frames_per_s
    arrivals = [record.arrival_s for record in records]
    assert arrivals == sorted(arrivals) and START_S <= arrivals[0] and arrivals[-1] < START_S + 3


def test_a_rate_below_one_a_second_is_kept_on_the_long_run():
    frames = Traffic(TrafficProfile(frames_per_s=0.3, small=True)).between(START_S, START_S + 1_000)
    assert len(frames) in (299, 300, 301)


def test_kinds_have_their_shares(records):
    for kind, share in shares(records).items():
        assert share == pytest.approx(0.85 if kind is Kind.ORDINARY else 0.05, abs=0.015)


def test_by_default_999_in_a_thousand_arrive_within_5_s_and_untouched():
    profile = TrafficProfile(frames_per_s=50_000, small=True)
    records = Traffic(profile).records_between(START_S, START_S + 2)
    within = sum(record.arrival_s - record.event_s < 5 + 1 for record in records) / len(records)
    assert within == pytest.approx(0.999, abs=0.0005)
    assert shares(records)[Kind.ORDINARY] == pytest.approx(0.997, abs=0.001)


def test_late_frames_are_delayed_between_the_two_bounds_and_others_less(records):
    for record in records:
        # event_s is floored, so up to one second more than the delay.
        seen_s = record.arrival_s - record.event_s
        if record.kind is Kind.LATE:
            assert MIXED.ordinary_delay_s <= seen_s < MIXED.late_by_max_s + 1
        else:
            assert 0 <= seen_s < MIXED.ordinary_delay_s + 1
    late = [r.arrival_s - r.event_s for r in records if r.kind is Kind.LATE]
    assert sum(late) / len(late) == pytest.approx(153, rel=0.15)


def test_a_flip_changes_exactly_one_of_32_bits_and_every_bit_gets_its_turn(records):
    changes = [r.written_ts ^ r.event_s for r in records if r.kind is Kind.FLIPPED]
    assert set(changes) == {1 << bit for bit in range(32)}
    assert all(r.written_ts == r.event_s for r in records if r.kind in (Kind.ORDINARY, Kind.LATE))


def test_a_random_flip_is_spread_over_all_32_bit_seconds():
    profile = TrafficProfile(frames_per_s=5_000, flip_share=0.5, flip_random=True, small=True)
    records = Traffic(profile).records_between(START_S, START_S + 1)
    written = [record.written_ts for record in records if record.kind is Kind.FLIPPED]
    assert 0 <= min(written) < 2**26 and 2**32 - 2**26 < max(written) < 2**32


# Who


def test_users_are_as_many_as_asked_and_uids_16_hex_digits():
    profile = TrafficProfile(frames_per_s=5_000, users=50, user_skew=0, small=True)
    seen = Counter(record.uid for record in Traffic(profile).records_between(START_S, START_S + 2))
    assert len(seen) == 50 and max(seen.values()) < 2 * min(seen.values())
    assert all(len(uid) == 16 and int(uid, 16) >= 0 for uid in seen)


@pytest.mark.parametrize("skew", [0.8, 1.0, 1.5])
def test_with_skew_some_users_are_frequent(skew):
    profile = TrafficProfile(frames_per_s=10_000, users=10_000, user_skew=skew, small=True)
    seen = Counter(record.uid for record in Traffic(profile).records_between(START_S, START_S + 1))
    top = sum(n for _, n in seen.most_common(100)) / 10_000
    assert top > 0.2 and len(seen) > 100


# The same again


def test_the_same_seed_gives_the_same_frames_and_another_seed_others():
    first = Traffic(MIXED).between(START_S, START_S + 1)
    assert first == Traffic(MIXED).between(START_S, START_S + 1)
    other = Traffic(TrafficProfile(frames_per_s=4_000, seed=8)).between(START_S, START_S + 1)
    assert not set(first) & set(other)


def test_a_generator_started_in_the_middle_joins_in(records):
    middle = Traffic(MIXED).between(START_S + 1, START_S + 2)
    assert middle == [r.payload for r in records if START_S + 1 <= r.arrival_s < START_S + 2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 3), max_size=6))
def test_slices_of_any_length_add_up_to_the_whole(cuts):
    traffic = Traffic(TrafficProfile(frames_per_s=77.7, bad_share=0.2, small=True))
    bounds = [START_S, *sorted(START_S + cut for cut in cuts), START_S + 3]
    slices = [f for start, end in zip(bounds, bounds[1:], strict=False) for f in traffic.between(start, end)]
    assert slices == traffic.between(START_S, START_S + 3)


def test_records_carry_the_frames_of_between(records):
    assert [record.payload for record in records] == Traffic(MIXED).between(START_S, START_S + 3)


@pytest.mark.parametrize("start_s", [START_S, START_S + 0.25])
def test_frames_are_the_first_so_many_in_bounded_chunks(start_s):
    traffic = Traffic(TrafficProfile(frames_per_s=25_000, small=True))
    chunks = list(traffic.frames(start_s, 30_001))
    assert all(1 <= len(chunk) <= FRAMES_PER_CHUNK for chunk in chunks)
    assert sum(chunks, []) == traffic.between(start_s, START_S + 2)[:30_001]
    assert list(traffic.frames(start_s, 0)) == []


# What is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames_per_s", 0),
        ("frames_per_s", float("nan")),
        ("users", 0),
        ("user_skew", -0.1),
        ("late_share", 1.1),
        ("late_by_max_s", -1),
        ("late_by_max_s", 4),
        ("ordinary_delay_s", -1),
        ("flip_share", -0.1),
        ("bad_share", 2),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be in [\[(]"):
        TrafficProfile(**{field: value})


def test_shares_above_one_together_are_refused():
    with pytest.raises(ValueError, match="late_share"):
        TrafficProfile(late_share=0.5, flip_share=0.4, bad_share=0.2)


@pytest.mark.parametrize(("start_s", "end_s"), [(2, 1), (-1, 1), (0, 2**32 + 1)])
def test_an_impossible_interval_is_refused(start_s, end_s):
    with pytest.raises(ValueError, match="start_s"):
        Traffic(TrafficProfile(small=True)).between(start_s, end_s)
