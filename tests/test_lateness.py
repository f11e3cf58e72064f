"""Event-time classes: by the order of the log alone, and unmoved by wrong timestamps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniq_pipeline.lateness import (
    HORIZON,
    NO_KAFKA_TIME,
    SAMPLE,
    STRIDE,
    EventClass,
    EventClock,
    LatenessPolicy,
    PendingFrame,
    combined_watermark_s,
    judge,
    proved_at_end,
    with_pending,
)

POLICY = LatenessPolicy()
START = 1_767_225_600  # 2026-01-01T00:00:00Z
ON_TIME, LATE, VERY_LATE, FUTURE = (int(c) for c in EventClass)
FRAMES_PER_S = [1000, 100, 10, 1, 1 / 10, 1 / 60, 1 / 3600, 1 / 86_400]


def run(event_s, kafka_s=None, cuts=(), policy=POLICY, lookahead=False):
    """Classes in the end (proved frames are on time) and the clock, judged in pieces that end at `cuts`.

    Between the pieces the clock goes through JSON, as it does through the ledger.
    """
    event_s = np.asarray(event_s, np.int64)
    clock, classes = EventClock(), np.zeros(len(event_s), np.uint8)
    ends = [*sorted(cuts), len(event_s)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        before = clock
        piece = event_s[start:end]
        verdicts = judge(before, piece, None if kafka_s is None else kafka_s[start:end], policy, lookahead=lookahead)
        classes[start:end] = verdicts.classes
        for frame in verdicts.proved:
            assert classes[frame.place] == FUTURE and frame.event_s == event_s[frame.place]
            classes[frame.place] = ON_TIME
        pending = [
            PendingFrame(before.seen + int(i), int(piece[i]), kafka_offset=0, kafka_time_ms=None, uid="u", coupon=0)
            for i in verdicts.still_pending
        ]
        clock = with_pending(verdicts.clock, pending)
        clock = EventClock.from_dict(json.loads(json.dumps(clock.as_dict())))
    return classes, clock


def traffic(seed, frames, per_s, ordinary_delay_s=5.0):
    """Event and Kafka times of frames that arrive at random, most a second after they happened."""
    rng = np.random.default_rng(seed)
    arrival_s = START + np.cumsum(rng.exponential(1 / per_s, frames))
    delay_s = np.minimum(rng.exponential(ordinary_delay_s / 5, frames), ordinary_delay_s)
    return np.floor(arrival_s - delay_s).astype(np.int64), np.floor(arrival_s).astype(np.int64)


def counted(classes):
    return int((classes <= LATE).sum())


# The same log gives the same classes


@st.composite
def logs(draw):
    """(event times, Kafka times or None): steady stretches, gaps, late frames, steps back and bit flips."""
    event_s, now = [], START
    for _ in range(draw(st.integers(1, 5))):
        now += draw(st.sampled_from([0, 30, 290, 310, 3600, 50_000, -200]))
        step = draw(st.sampled_from([0, 0, 1, 7, 60, 3600]))
        for _ in range(draw(st.integers(1, 60))):
            now += step
            kind = draw(st.sampled_from("ooooooolvf"))
            wrong = {
                "o": 0,
                "l": -100,
                "v": -5000,
                "f": draw(st.sampled_from([400, 10**6, 2**31])) if kind == "f" else 0,
            }
            event_s.append(max(0, now + wrong[kind]))
    event_s = np.array(event_s, np.int64)
    which = draw(st.sampled_from(["none", "event", "now", "some"]))
    if which == "none":
        return event_s, None
    kafka_s = event_s + 1 if which == "event" else np.full(len(event_s), START + 10**6)
    if which == "some":
        kafka_s = np.where(np.arange(len(event_s)) % 3 == 0, event_s + 1, NO_KAFKA_TIME)
    return event_s, kafka_s


@settings(max_examples=150, deadline=None)
@given(logs(), st.data())
def test_classes_and_clock_do_not_depend_on_batch_boundaries_or_restarts(log, data):
    event_s, kafka_s = log
    cuts = data.draw(st.lists(st.integers(0, len(event_s)), max_size=12))
    whole, in_pieces = run(event_s, kafka_s), run(event_s, kafka_s, cuts)
    assert np.array_equal(whole[0], in_pieces[0])
    assert whole[1] == in_pieces[1]


@pytest.mark.parametrize("with_kafka_times", [False, True])
def test_one_frame_at_a_time_gives_the_same_classes(with_kafka_times):
    event_s, kafka_s = traffic(1, 400, per_s=1)
    event_s[100:] += 30_000  # a gap, so that frames are pending across the cuts
    event_s[::37] ^= 1 << 20
    kafka_s = kafka_s if with_kafka_times else None
    whole, one_by_one = run(event_s, kafka_s), run(event_s, kafka_s, cuts=range(1, 400))
    assert np.array_equal(whole[0], one_by_one[0]) and whole[1] == one_by_one[1]


@settings(max_examples=50, deadline=None)
@given(logs(), st.data())
def test_with_lookahead_only_the_first_16_frames_need_to_come_together(log, data):
    event_s, _ = log
    cuts = data.draw(st.lists(st.integers(min(STRIDE, len(event_s)), len(event_s)), max_size=8))
    whole, in_pieces = run(event_s, lookahead=True), run(event_s, cuts=cuts, lookahead=True)
    assert np.array_equal(whole[0], in_pieces[0]) and whole[1] == in_pieces[1]


def test_a_clock_is_of_bounded_size_however_long_the_log():
    event_s, _ = traffic(1, 20_000, per_s=10)
    event_s[np.random.default_rng(1).random(20_000) < 0.1] += 10**6
    clock = run(event_s, cuts=range(0, 20_000, 500))[1]
    assert len(clock.recent_s) == SAMPLE and len(clock.pending) <= SAMPLE + STRIDE


def test_records_without_a_kafka_time_count_as_records_that_it_does_not_vouch_for():
    event_s, _ = traffic(1, 300, per_s=1)
    event_s[150:] += 10_000
    classes, clock = run(event_s, np.full(300, NO_KAFKA_TIME))
    expected, expected_clock = run(event_s, None)
    assert np.array_equal(classes, expected) and clock == expected_clock


# Wrong timestamps


@pytest.mark.parametrize("per_s", FRAMES_PER_S[:-1])
@pytest.mark.parametrize("with_kafka_times", [False, True])
def test_40_one_percent_of_random_timestamps_change_no_other_frames_class(per_s, with_kafka_times):
    frames = 5_000
    for seed in range(10):
        event_s, kafka_s = traffic(seed, frames, per_s)
        rng = np.random.default_rng(seed)
        late = rng.random(frames) < 0.02
        # Clear of the bounds between classes: there a second more or less is another class by right.
        event_s[late] -= rng.choice([60, 5000], late.sum())
        flipped = rng.random(frames) < 0.01
        wrong_s = np.where(flipped, rng.integers(0, 2**32, frames), event_s)
        kafka_s = kafka_s if with_kafka_times else None
        clean, _ = run(event_s, kafka_s, lookahead=not with_kafka_times)
        dirty, _ = run(wrong_s, kafka_s, lookahead=not with_kafka_times)
        changed = np.flatnonzero((clean != dirty) & ~flipped)
        changed = [i for i in changed if {clean[i], dirty[i]} != {ON_TIME, LATE}]
        assert changed == []


@pytest.mark.parametrize("per_s", [1000, 10, 1 / 60])
def test_40_random_timestamps_are_not_counted(per_s):
    event_s, kafka_s = traffic(3, 20_000, per_s)
    rng = np.random.default_rng(3)
    flipped = rng.random(20_000) < 0.01
    event_s[flipped] = rng.integers(0, 2**32, flipped.sum())
    classes, _ = run(event_s, kafka_s)
    assert counted(classes[~flipped]) == (~flipped).sum()
    assert counted(classes[flipped]) == 0


@pytest.mark.parametrize("bit", range(9, 33))
def test_40_a_flipped_bit_moves_neither_watermark_nor_neighbours(bit):
    event_s, _ = traffic(4, 2_000, per_s=100)
    clean, clean_clock = run(event_s)
    flipped_s = event_s.copy()
    flipped_s[1_000] ^= 1 << bit
    classes, clock = run(flipped_s)
    assert classes[1_000] in (VERY_LATE, FUTURE)
    assert np.array_equal(np.delete(classes, 1_000), np.delete(clean, 1_000)) and clock.front_s == clean_clock.front_s


def test_15_wrong_frames_in_a_row_do_not_move_the_front():
    event_s, _ = traffic(5, 1_000, per_s=10)
    wrong_s = event_s.copy()
    wrong_s[500:515] += 86_400 * 365
    classes, _ = run(wrong_s)
    assert (classes[500:515] == FUTURE).all()
    assert np.array_equal(np.delete(classes, range(500, 515)), np.delete(run(event_s)[0], range(500, 515)))


@pytest.mark.parametrize("ahead_s", [3_600, 86_400 * 365])
def test_a_producer_whose_clock_is_ahead_of_kafka_does_not_move_the_front(ahead_s):
    event_s, kafka_s = traffic(5, 2_000, per_s=10)
    wrong_s = event_s.copy()
    wrong_s[500:700] += ahead_s  # a whole Kafka batch of one producer
    classes, _ = run(wrong_s, kafka_s)
    assert (classes[500:700] == FUTURE).all()
    others = np.delete(np.arange(2_000), range(500, 700))
    assert (classes[others] <= LATE).all()


def test_a_topic_whose_every_frame_is_ahead_of_its_kafka_time_is_counted():
    event_s, kafka_s = traffic(5, 1_000, per_s=10)
    classes, _ = run(event_s + 86_400 * 365, kafka_s)
    assert counted(classes) == 1_000


@pytest.mark.parametrize("cut", [1, 3, 10, 17])
def test_a_first_frame_both_too_old_and_ahead_of_its_kafka_time_is_judged_alike_in_any_batch(cut):
    event_s = START + np.array([4_000, 8_000, 3_000] + [12_000] * 21)
    kafka_s = np.array([START + 4_000, NO_KAFKA_TIME, START] + [NO_KAFKA_TIME] * 21)
    classes, clock = run(event_s, kafka_s, [cut])
    whole, whole_clock = run(event_s, kafka_s)
    assert np.array_equal(classes, whole) and clock == whole_clock


@pytest.mark.parametrize("last", [2, 10, 16])
def test_at_the_end_of_a_file_the_frames_after_a_gap_are_proved_by_each_other(last):
    event_s = np.concatenate([START + np.arange(40), START + 7_200 + np.arange(last)])
    classes, clock = run(event_s, lookahead=True)
    assert (classes[40:] == FUTURE).all()
    assert [frame.place for frame in proved_at_end(clock, POLICY)] == list(range(40, 40 + last))


def test_at_the_end_of_a_file_flipped_frames_are_not_proved():
    event_s = np.concatenate([START + np.arange(40), [START + 10**6], START + np.arange(40, 43), [START + 10**7]])
    _, clock = run(event_s, lookahead=True)
    assert len(clock.pending) == 2
    assert proved_at_end(clock, POLICY) == ()


def test_a_flip_is_never_proved_by_what_comes_after_a_gap():
    event_s = np.concatenate([START + np.arange(100), START + 20_000 + np.arange(200)])
    event_s[90] += 10**6
    classes, clock = run(event_s)
    assert classes[90] == FUTURE and clock.pending == ()


def test_lateness_past_the_range_of_its_column_is_kept_as_the_largest():
    event_s = np.full(64, 253_370_000_000)
    event_s[-1] = 0
    verdicts = judge(EventClock(), event_s, None, POLICY)
    assert verdicts.classes[-1] == VERY_LATE and verdicts.late_by_s[-1] == np.iinfo(np.int32).max


# The watermark


@settings(max_examples=50, deadline=None)
@given(logs())
def test_the_watermark_does_not_reverse(log):
    event_s, kafka_s = log
    clock, watermarks = EventClock(), []
    for i in range(len(event_s)):
        clock = judge(clock, event_s[i : i + 1], None if kafka_s is None else kafka_s[i : i + 1], POLICY).clock
        watermarks.append(clock.watermark_s(POLICY))
    assert all(w is None for w in watermarks[: STRIDE - 1])
    known = [w for w in watermarks if w is not None]
    assert known == sorted(known)


@pytest.mark.parametrize("cuts", [(), range(1, 400)])
def test_when_event_time_steps_back_for_good_the_watermark_stays(cuts):
    before = START + np.arange(200)
    event_s = np.concatenate([before, before - 3600])
    classes, clock = run(event_s, cuts=cuts)
    assert START <= run(before)[1].front_s <= clock.front_s < START + 200
    assert (classes[200:] == VERY_LATE).all()


@pytest.mark.parametrize("per_s", [1000, 100, 10])
def test_the_watermark_trails_the_newest_frame_by_about_the_expected_delay(per_s):
    event_s, kafka_s = traffic(6, 10_000, per_s)
    watermark_s = run(event_s)[1].watermark_s(POLICY)
    assert 0 <= kafka_s[-1] - watermark_s <= POLICY.expected_delay_s + SAMPLE / per_s + 3


# Delays


@pytest.mark.parametrize("per_s", FRAMES_PER_S)
@pytest.mark.parametrize("with_kafka_times", [False, True])
def test_every_frame_of_a_steady_topic_is_counted_however_sparse(per_s, with_kafka_times):
    for seed in range(5):
        event_s, kafka_s = traffic(seed, 2_000, per_s)
        classes, clock = run(event_s, kafka_s if with_kafka_times else None, lookahead=not with_kafka_times)
        assert counted(classes) == 2_000 and clock.pending == ()


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 20, 40])
@pytest.mark.parametrize("step_s", [0, 1, 60, 3600, 86_400])
def test_every_frame_of_a_short_file_is_counted(frames, step_s):
    classes, _ = run(START + step_s * np.arange(frames), lookahead=True)
    assert counted(classes) == frames


@pytest.mark.parametrize("per_s", [1000, 100, 10, 1, 1 / 10])
def test_frames_delayed_by_up_to_100_s_are_counted(per_s):
    event_s, kafka_s = traffic(7, 20_000, per_s)
    rng = np.random.default_rng(7)
    late = rng.random(20_000) < 0.05
    event_s = np.where(late, kafka_s - rng.integers(6, 101, 20_000), event_s)
    assert counted(run(event_s, lookahead=True)[0]) == 20_000
    assert counted(run(event_s, kafka_s)[0]) == 20_000


@pytest.mark.parametrize("with_kafka_times", [False, True])
def test_45_frames_more_than_two_minutes_behind_are_very_late(with_kafka_times):
    event_s, kafka_s = traffic(8, 2_000, per_s=100)
    event_s[1_000::100] = kafka_s[1_000::100] - 135
    classes, _ = run(event_s, kafka_s if with_kafka_times else None)
    assert (classes[1_000::100] == VERY_LATE).all() and counted(classes) == 1_990


def test_the_bounds_between_on_time_late_very_late_and_future_are_where_they_are_said_to_be():
    steady = np.full(64, START)
    behind = np.array([0, 5, 6, 125, 126, -300, -301])
    verdicts = judge(judge(EventClock(), steady, None, POLICY).clock, START - behind, None, POLICY)
    assert verdicts.classes.tolist() == [ON_TIME, ON_TIME, LATE, LATE, VERY_LATE, ON_TIME, FUTURE]
    assert verdicts.late_by_s.tolist() == [0, 0, 1, 120, 121, 0, 0]


def test_the_policy_sets_the_bounds():
    policy = LatenessPolicy(expected_delay_s=0, allowed_lateness_s=10, max_future_skew_s=20)
    clock = judge(EventClock(), np.full(64, START), None, policy).clock
    verdicts = judge(clock, START - np.array([0, 1, 10, 11, -20, -21]), None, policy)
    assert verdicts.classes.tolist() == [ON_TIME, LATE, LATE, VERY_LATE, ON_TIME, FUTURE]


# Gaps


@pytest.mark.parametrize("cuts", [(), range(60, 200)])
@pytest.mark.parametrize("ahead_s, proved", [(700 + 3 * 700, True), (700 + 3 * 700 + 1, False)])
def test_a_future_frame_is_proved_up_to_the_bound_of_a_later_look_inclusive(cuts, ahead_s, proved):
    # The front follows to 700 s, where the spread of the last 64 frames is 700 s for some looks.
    event_s = np.concatenate([np.full(64, START), [START + ahead_s], np.full(80, START + 700)])
    assert run(event_s, cuts=cuts)[0][64] == (ON_TIME if proved else FUTURE)


@pytest.mark.parametrize("gap_s", [600, 3600, 8 * 3600, 30 * 86_400])
@pytest.mark.parametrize("per_s", [100, 1, 1 / 60, 1 / 3600])
def test_after_a_gap_frames_are_held_then_proved_and_none_is_lost(gap_s, per_s):
    event_s, _ = traffic(9, 1_000, per_s)
    event_s[500:] += gap_s
    at_once = judge(EventClock(), event_s[:501], None, POLICY).classes[-1]
    assert at_once == FUTURE or gap_s <= max(POLICY.max_future_skew_s, 100 / per_s)
    cuts = range(500, 500 + HORIZON * STRIDE)
    assert counted(run(event_s, cuts=cuts)[0]) == 1_000


def test_after_a_gap_a_frame_that_agrees_with_its_kafka_time_is_counted_at_once():
    event_s, kafka_s = traffic(10, 501, per_s=10)
    event_s[500] += 8 * 3600
    kafka_s[500] += 8 * 3600
    assert run(event_s, kafka_s)[0][500] == ON_TIME
    assert run(event_s, kafka_s + 10**7)[0][500] == FUTURE


def test_a_kafka_time_that_does_not_agree_proves_nothing():
    event_s, kafka_s = traffic(11, 501, per_s=10)
    event_s[500] = kafka_s[500] + POLICY.max_future_skew_s + 1
    assert run(event_s, kafka_s)[0][500] == FUTURE
    event_s[500] -= 1
    assert run(event_s, kafka_s)[0][500] == ON_TIME


def test_traffic_that_comes_and_goes_is_counted_whole():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        parts, now = [], float(START)
        for _ in range(20):
            parts.append(now + np.cumsum(rng.exponential(10 ** rng.uniform(-2, 4), int(rng.integers(100, 400)))))
            now = parts[-1][-1]
        event_s = np.concatenate(parts).astype(np.int64)
        assert counted(run(event_s, event_s + 1)[0]) == len(event_s)
        assert counted(run(event_s, lookahead=True)[0][:-SAMPLE]) == len(event_s) - SAMPLE


# The first frames of a topic partition


def test_the_first_frames_are_held_when_they_are_ahead_of_their_kafka_time():
    classes, _ = run([START, START + 10**6, START + 2], np.full(3, START + 1))
    assert classes.tolist() == [ON_TIME, FUTURE, ON_TIME]


def test_the_first_frames_are_held_when_they_are_far_behind_one_that_was_vouched_for():
    classes, _ = run([START - 10**6, START, START - 10**6, START - 60], np.full(4, START + 1))
    assert classes.tolist() == [ON_TIME, ON_TIME, VERY_LATE, LATE]


def test_the_first_frames_of_history_loaded_long_after_are_counted():
    classes, _ = run(START + np.arange(10), np.full(10, START + 10**8))
    assert counted(classes) == 10


def test_with_lookahead_a_wrong_timestamp_among_the_first_16_is_held():
    event_s = START + np.arange(100)
    event_s[0], event_s[3] = START + 10**6, START - 10**6
    classes, _ = run(event_s, lookahead=True)
    assert (classes[0], classes[3]) == (FUTURE, VERY_LATE) and counted(classes) == 98


def test_no_frames_leave_the_clock_as_it_was():
    clock = run(START + np.arange(70))[1]
    verdicts = judge(clock, np.array([], np.int64), np.array([], np.int64), POLICY)
    assert verdicts.clock == clock and len(verdicts.classes) == 0


# The watermark of the whole topic


def test_46_an_idle_topic_partition_holds_nobody_back():
    assert combined_watermark_s({0: 5_000, 1: 100}, {0: True, 1: True}, 120) == 5_000
    assert combined_watermark_s({0: 5_000, 1: 100}, {0: False, 1: True}, 120) == 5_000


def test_46_a_topic_partition_that_never_had_a_frame_holds_nobody_back():
    assert combined_watermark_s({0: 5_000, 1: None}, {0: True, 1: True}, 120) == 5_000


def test_46_a_lagging_topic_partition_holds_everybody_back():
    assert combined_watermark_s({0: 5_000, 1: 100}, {0: True, 1: False}, 120) == 100
    assert combined_watermark_s({0: 5_000, 1: None}, {0: True, 1: False}, 120) is None


def test_46_a_topic_partition_a_little_behind_is_waited_for():
    assert combined_watermark_s({0: 5_000, 1: 4_880}, {0: True, 1: True}, 120) == 4_880
    assert combined_watermark_s({0: 5_000, 1: 4_879}, {0: True, 1: True}, 120) == 5_000


def test_46_without_any_frame_there_is_no_watermark():
    assert combined_watermark_s({}, {}, 120) is None
    assert combined_watermark_s({0: None}, {0: True}, 120) is None
