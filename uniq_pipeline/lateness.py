"""Event-time classes: which frames are counted, which are held, by the order of the log alone.

Each topic partition has an **event front**: the 16th largest event time of its last 64 frames, looked at
after every 16th frame and never moving back. Its **event watermark** trails the front by `expected_delay_s`.
A bit-flipped timestamp cannot carry the front away: it moves it to the next of the ranked times at most, and to do
more 16 of 64 frames would have to be wrong in the same direction. A producer whose clock is ahead sends whole runs
of wrong frames, though. So once any frame of the topic partition has agreed with its Kafka time, one that is ahead
of its own by more than `max_future_skew_s` enters the sample with its Kafka time instead.

A frame is judged against the watermark of the last multiple of 16 before it, so the classes depend on the
frame's place in the log and on nothing else: not on batches, restarts or the wall clock.

    on_time     at or after the watermark
    late        behind it by at most `allowed_lateness_s`: counted, its minute is recomputed
    very_late   further behind: held (or counted at once, by the `very_late` setting)
    future      ahead of the front by more than `max_future_skew_s` and by more than three times the spread
                (interquartile range) of the last 64 frames: held until proved

The spread makes room for sparse topics: with a frame an hour, the next hour is no bit flip. A future frame is
proved, and counted after all, when its Kafka time agrees with it, or when the front of one of the next four
looks has come near it: after a night without traffic the first frames look like the future, the front
follows within 16 frames, and what was held for that is admitted. A flipped frame is never proved. Where a log
has an end (a file), the last frames are proved by agreeing with each other (`proved_at_end`).

The first 16 frames of a topic partition have no front to be judged by. From a file (`lookahead`) the first
look serves them too, with as much room behind its front as ahead of it; from Kafka they are held only when
they are ahead of their own Kafka time, or far behind one of the frames before them whose Kafka time vouched
for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum

import numpy as np

STRIDE = 16  # frames between two looks
SAMPLE = 64  # frames a look considers
RANK = 16  # the front is the RANK-th largest of them
HORIZON = 4  # looks within which a future frame may be proved: SAMPLE / STRIDE
SPREAD_FACTOR = 3

_NEVER = np.iinfo(np.int64).min // 4  # far below every event time, and safe to subtract from
NO_KAFKA_TIME = _NEVER


class EventClass(IntEnum):
    ON_TIME = 0
    LATE = 1
    VERY_LATE = 2
    FUTURE = 3

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class LatenessPolicy:
    """All in seconds; see the settings of the same names."""

    expected_delay_s: int = 5
    allowed_lateness_s: int = 120
    max_future_skew_s: int = 300


@dataclass(frozen=True)
class PendingFrame:
    """A held future frame that the next looks may still prove. `place` counts frames of its topic partition."""

    place: int
    event_s: int
    kafka_offset: int
    kafka_time_ms: int | None
    uid: str
    coupon: int
    dimensions: Mapping[str, str] | None = None


@dataclass(frozen=True)
class EventClock:
    """What a topic partition's log up to some offset says about event time. Saved with that offset.

    seen       frames judged so far
    front_s    the event front, None before the first look
    bound_s    event times beyond this are future, None before the first look
    recent_s   event times of the last min(seen, 64) frames, oldest first, as they enter the sample
    vouched_s  event time that its Kafka time agreed with: the earliest before there was a front, else the first
    pending    future frames that may still be proved
    """

    seen: int = 0
    front_s: int | None = None
    bound_s: int | None = None
    recent_s: tuple[int, ...] = ()
    vouched_s: int | None = None
    pending: tuple[PendingFrame, ...] = ()

    def watermark_s(self, policy: LatenessPolicy) -> int | None:
        """The event watermark: frames before it are late. None before the first look."""
        return None if self.front_s is None else self.front_s - policy.expected_delay_s

    def without_pending(self, offsets: Collection[int]) -> EventClock:
        """The clock without the pending frames at these offsets."""
        return replace(self, pending=tuple(frame for frame in self.pending if frame.kafka_offset not in offsets))

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> EventClock:
        pending = tuple(PendingFrame(**frame) for frame in values["pending"])
        return cls(**{**values, "recent_s": tuple(values["recent_s"]), "pending": pending})


@dataclass(frozen=True)
class Verdicts:
    """The judgement of n frames.

    classes        uint8[n]  EventClass of each
    late_by_s      int32[n]  seconds behind the watermark; 0 when on time or future
    proved         pending frames of earlier batches that are on_time after all
    still_pending  int64[]   indexes of future frames of this batch that later looks may prove
    clock          the clock after these frames; its `pending` lacks the frames of `still_pending`
    """

    classes: np.ndarray
    late_by_s: np.ndarray
    proved: tuple[PendingFrame, ...]
    still_pending: np.ndarray
    clock: EventClock


def judge(
    clock: EventClock,
    event_s: np.ndarray,
    kafka_s: np.ndarray | None,
    policy: LatenessPolicy,
    *,
    lookahead: bool = False,
) -> Verdicts:
    """Judges the next frames of one topic partition, in offset order.

    event_s    int64[n]  event times
    kafka_s    int64[n]  Kafka times (whole seconds), NO_KAFKA_TIME where a record has none, or None where
                         the source has none
    lookahead  the first call holds at least the first 16 frames, or all there are (files, stdin)
    """
    event_s = np.asarray(event_s, np.int64)
    n = len(event_s)
    skew = policy.max_future_skew_s
    if kafka_s is None:
        kafka_s = np.full(n, NO_KAFKA_TIME)  # earlier frames may have had times, and vouched: one way for all
    agrees = np.abs(event_s - kafka_s) <= skew
    is_live = np.logical_or.accumulate(np.concatenate([[clock.vouched_s is not None], agrees]))[:-1]
    ahead = is_live & (event_s > kafka_s + skew) & (kafka_s != NO_KAFKA_TIME)
    sample_s = np.where(ahead, kafka_s, event_s)
    fronts, bounds = _looks(clock, sample_s, policy)
    places = np.arange(clock.seen, clock.seen + n)
    look = places // STRIDE - clock.seen // STRIDE  # index into fronts and bounds
    if lookahead and clock.front_s is None and len(fronts) > 1:
        # The first frames may be as far behind the first front as later ones may be ahead of it: at a frame a
        # minute, the first of a file is minutes behind the middle of the first 16.
        fronts[0], bounds[0] = 2 * fronts[1] - bounds[1], bounds[1]
    front, bound = fronts[look], bounds[look]

    unjudged = front == _NEVER
    vouched_s = clock.vouched_s
    if unjudged.any():
        front, bound, vouched_s = _first_frames(clock, event_s, kafka_s, agrees, unjudged, front, bound, skew)
    if vouched_s is None and agrees.any():
        vouched_s = int(event_s[np.argmax(agrees)])

    watermark = front - policy.expected_delay_s
    late_by = np.where(front == _NEVER, 0, np.maximum(watermark - event_s, 0))
    classes = np.zeros(n, np.uint8)
    classes[late_by > 0] = EventClass.LATE
    # Its own Kafka time vouches for a first frame more than another frame speaks against it: of two that are
    # minutes apart, either may be the flipped one.
    classes[(late_by > policy.allowed_lateness_s) & ~(unjudged & agrees)] = EventClass.VERY_LATE

    future = np.flatnonzero((event_s > bound) & (bound != _NEVER) & ~agrees)
    best_later = _best_of_next_looks(bounds)
    proved_here = event_s[future] <= best_later[look[future]]
    # On time whatever else was said of it, as when a later batch proves it.
    classes[future[proved_here]] = EventClass.ON_TIME
    late_by[future] = 0
    future = future[~proved_here]
    classes[future] = EventClass.FUTURE
    late_by = np.where(classes == EventClass.FUTURE, 0, np.minimum(late_by, np.iinfo(np.int32).max))
    last_look = len(bounds) - 1
    still_pending = future[look[future] + HORIZON > last_look]

    proved, kept = _old_pending(clock, bounds)
    seen = clock.seen + n
    return Verdicts(
        classes=classes,
        late_by_s=late_by.astype(np.int32),
        proved=proved,
        still_pending=still_pending,
        clock=EventClock(
            seen=seen,
            front_s=_or_none(_looked(fronts, clock, last_look)),
            bound_s=_or_none(_looked(bounds, clock, last_look)),
            recent_s=tuple(np.concatenate([np.array(clock.recent_s, np.int64), sample_s])[-SAMPLE:].tolist()),
            vouched_s=vouched_s,
            pending=kept,
        ),
    )


def _looked(values: np.ndarray, clock: EventClock, last_look: int) -> int:
    """The value of the newest look; before the first one there is none, whatever lookahead filled in."""
    return _NEVER if last_look == 0 and clock.front_s is None else int(values[last_look])


def _or_none(value: int) -> int | None:
    return None if value == _NEVER else value


def _looks(clock: EventClock, event_s: np.ndarray, policy: LatenessPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Front and future bound before the frames (index 0) and after every 16th frame among them."""
    known = np.concatenate([np.array(clock.recent_s, np.int64), event_s])
    shift = len(clock.recent_s) - clock.seen  # from a place in the log to an index into `known`
    first = (clock.seen // STRIDE + 1) * STRIDE
    ends = np.arange(first, clock.seen + len(event_s) + 1, STRIDE)
    fronts = np.full(len(ends) + 1, _NEVER, np.int64)
    bounds = np.full(len(ends) + 1, _NEVER, np.int64)
    if clock.front_s is not None:
        fronts[0], bounds[0] = clock.front_s, clock.bound_s
    spreads = np.zeros(len(ends), np.int64)
    full = ends >= SAMPLE
    for i in np.flatnonzero(~full):  # at most three, at the very beginning
        sample = np.sort(known[: ends[i] + shift])
        count = len(sample)
        fronts[i + 1] = sample[count - min(RANK, count // 2)]
        spreads[i] = sample[count - count // 4] - sample[count // 4 - 1]
    if full.any():
        # (looks, 64) copies: 4 values a frame. Sorting costs 33 ns a frame, np.partition by two ranks 203.
        samples = np.lib.stride_tricks.sliding_window_view(known, SAMPLE)[ends[full] + shift - SAMPLE]
        ranked = np.sort(samples, axis=1)
        fronts[1:][full] = ranked[:, SAMPLE - RANK]
        spreads[full] = ranked[:, SAMPLE - RANK] - ranked[:, RANK - 1]
    np.maximum.accumulate(fronts, out=fronts)
    bounds[1:] = fronts[1:] + np.maximum(policy.max_future_skew_s, SPREAD_FACTOR * spreads)
    return fronts, bounds


def _first_frames(
    clock: EventClock,
    event_s: np.ndarray,
    kafka_s: np.ndarray,
    agrees: np.ndarray,
    unjudged: np.ndarray,
    front: np.ndarray,
    bound: np.ndarray,
    skew: int,
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Fronts and bounds for frames before the first look, by their Kafka times."""
    nothing = np.iinfo(np.int64).max
    before = nothing if clock.vouched_s is None else clock.vouched_s
    candidates = np.where(unjudged & agrees, event_s, nothing)
    vouched = np.minimum.accumulate(np.concatenate([[before], candidates]))
    usable = unjudged & (vouched[:-1] != nothing)
    front = np.where(usable, vouched[:-1], front)
    bound = np.where(unjudged & (kafka_s != NO_KAFKA_TIME), kafka_s + skew, bound)
    return front, bound, None if vouched[-1] == nothing else int(vouched[-1])


def _best_of_next_looks(bounds: np.ndarray) -> np.ndarray:
    """For each look, the largest future bound of the next HORIZON ones."""
    best = np.full(len(bounds), _NEVER, np.int64)
    for ahead in range(1, HORIZON + 1):
        best[:-ahead] = np.maximum(best[:-ahead], bounds[ahead:])
    return best


def _old_pending(clock: EventClock, bounds: np.ndarray) -> tuple[tuple[PendingFrame, ...], tuple[PendingFrame, ...]]:
    proved, kept = [], []
    for frame in clock.pending:
        last = frame.place // STRIDE - clock.seen // STRIDE + HORIZON
        seen_now = bounds[1 : last + 1] if last > 0 else bounds[:0]
        if len(seen_now) and frame.event_s <= seen_now.max():
            proved.append(frame)
        elif last > len(bounds) - 1:
            kept.append(frame)
    return tuple(proved), tuple(kept)


def proved_at_end(clock: EventClock, policy: LatenessPolicy) -> tuple[PendingFrame, ...]:
    """The pending frames that count after all when the log ends here, as a file does.

    Proved are those that another frame of the sample agrees with, and that most of the frames after them do
    not fall back behind. A single last frame far ahead stays held: it may be flipped.
    """
    skew = policy.max_future_skew_s
    recent = np.array(clock.recent_s, np.int64)
    first_place = clock.seen - len(recent)
    proved = []
    for frame in clock.pending:
        agreeing = int((np.abs(recent - frame.event_s) <= skew).sum())  # itself among them
        after = recent[frame.place - first_place + 1 :]
        if agreeing >= 2 and 2 * int((after < frame.event_s - skew).sum()) <= len(after):
            proved.append(frame)
    return tuple(proved)


def judge_in_context(
    event_s: np.ndarray,
    kafka_s: np.ndarray,
    fronts_s: Sequence[int | None],
    bounds_s: Sequence[int | None],
    policy: LatenessPolicy,
) -> tuple[np.ndarray, np.ndarray]:
    """Classes (uint8[n]) and late_by_s (int32[n]) of frames whose place in the log is past: nothing moves its clock.

    fronts_s, bounds_s  the event front before the stretch of the log a frame stood in, and the future bound after
                        it; None where the log had none. A stretch is a batch, so this is more lenient than `judge`
                        by the event time a batch spans.
    """
    no_front = np.array([front is None for front in fronts_s])
    no_bound = np.array([bound is None for bound in bounds_s])
    front = np.array([0 if front is None else front for front in fronts_s], np.int64)
    bound = np.array([0 if bound is None else bound for bound in bounds_s], np.int64)
    late_by = np.where(no_front, 0, np.maximum(front - policy.expected_delay_s - event_s, 0))
    classes = np.full(len(event_s), EventClass.ON_TIME, np.uint8)
    classes[late_by > 0] = EventClass.LATE
    classes[late_by > policy.allowed_lateness_s] = EventClass.VERY_LATE
    agrees = np.abs(event_s - kafka_s) <= policy.max_future_skew_s
    classes[~no_bound & (event_s > bound) & ~agrees] = EventClass.FUTURE
    late_by = np.where(classes == EventClass.FUTURE, 0, np.minimum(late_by, np.iinfo(np.int32).max))
    return classes, late_by.astype(np.int32)


def with_pending(clock: EventClock, frames: list[PendingFrame]) -> EventClock:
    return replace(clock, pending=clock.pending + tuple(frames))


def combined_watermark_s(
    watermarks_s: dict[int, int | None], caught_up: dict[int, bool], idle_after_s: int
) -> int | None:
    """The event watermark of the whole topic, or None.

    The lowest of its topic partitions', but a partition that has nothing left to read and is more than
    `idle_after_s` behind the highest is idle and holds nobody back.
    """
    known = {p: w for p, w in watermarks_s.items() if w is not None}
    if not known:
        return None
    highest = max(known.values())
    if any(w is None and not caught_up[p] for p, w in watermarks_s.items()):
        return None
    return min(w for p, w in known.items() if not caught_up[p] or w >= highest - idle_after_s)
