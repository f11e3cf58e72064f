"""How the event-time rules do on streams like the challenge's: `python bench/event_time.py`.

Each stream is 400,000 frames of 50,000 users in one topic partition, in order of arrival, judged as the drain judges
them. It is held against the same stream with no timestamp damaged. Of each:

    very late, future   share of frames held
    moved               undamaged frames that are held, or counted, only because of another frame's damage
    late moved          undamaged frames that are late instead of on time, or the other way round, because of it
    flips counted       damaged frames that are counted, because their wrong time is plausible, out of all damaged
    minutes right       minutes whose users are exactly those of the undamaged, undelayed truth, but for the users of
                        damaged frames in their true and in their wrong minute
    final after         seconds of event time from a minute's end to the frame that makes it final, median and worst
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniq_pipeline.lateness import EventClass, EventClock, LatenessPolicy, judge

FRAMES = 400_000
USERS = 50_000
START_S = 1_700_000_000
POLICY = LatenessPolicy()


@dataclass(frozen=True)
class Stream:
    """What a stream is like: frames a second, share delayed for longer than 5 s and by how much, share flipped."""

    name: str
    rate: float
    late_share: float = 0.001
    late_by_s: float = 10
    flip_share: float = 0.0
    one_bit: bool = False
    live: bool = True


STREAMS = (
    Stream("99.9% within 5 s", 1000),
    Stream("5% up to 100 s late", 1000, 0.05, 100),
    Stream("5% up to 600 s late", 1000, 0.05, 600),
    Stream("1% random timestamps", 1000, flip_share=0.01),
    Stream("1% one bit flipped", 1000, flip_share=0.01, one_bit=True),
    Stream("5% late, 1% random", 1000, 0.05, 100, 0.01),
    Stream("5% up to 600 s late, 1% random", 1000, 0.05, 600, 0.01),
    Stream("5% late, 1% random, replayed", 1000, 0.05, 100, 0.01, live=False),
    Stream("5% late, 1% random, 20 frames/s", 20, 0.05, 100, 0.01),
    Stream("5% late, 1% random, 1 frame/s", 1, 0.05, 100, 0.01),
)


def run(stream: Stream, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    true_s = START_S + np.arange(FRAMES) / stream.rate
    delay = rng.uniform(0, 5, FRAMES)
    is_late = rng.random(FRAMES) < stream.late_share
    delay[is_late] = rng.uniform(5, stream.late_by_s, is_late.sum())
    order = np.argsort(true_s + delay, kind="stable")
    arrival_s = (true_s + delay)[order].astype(np.int64)
    true_s, users = true_s[order].astype(np.int64), rng.integers(0, USERS, FRAMES)
    flipped = rng.random(FRAMES) < stream.flip_share
    written_s = true_s.copy()
    if stream.one_bit:
        written_s[flipped] ^= 1 << rng.integers(0, 32, flipped.sum())
    else:
        written_s[flipped] = rng.integers(0, 1 << 32, flipped.sum())
    kafka_s = arrival_s if stream.live else np.full(FRAMES, arrival_s[-1] + 86_400)

    found = _classes(written_s, kafka_s)
    undamaged = _classes(true_s, kafka_s)
    counted = found <= EventClass.LATE
    truth = _pairs(true_s, users)
    damaged = np.union1d(_pairs(true_s[flipped], users[flipped]), _pairs(written_s[flipped], users[flipped]))
    wrong = np.setdiff1d(np.setxor1d(truth, _pairs(written_s[counted], users[counted])), damaged)
    minutes = len(np.unique(truth // USERS))
    waits = _final_after(true_s, written_s, kafka_s)
    return [
        stream.name,
        f"{100 * (found == EventClass.VERY_LATE).mean():.3f}%",
        f"{100 * (found == EventClass.FUTURE).mean():.3f}%",
        f"{int((counted != (undamaged <= EventClass.LATE))[~flipped].sum())}",
        f"{int(((found != undamaged) & counted)[~flipped].sum())}",
        f"{int((counted & flipped).sum()):,} of {int(flipped.sum()):,}",
        f"{minutes - len(np.unique(wrong // USERS)):,} of {minutes:,}",
        f"{np.median(waits):.0f} / {max(waits):.0f}",
    ]


def _classes(event_s: np.ndarray, kafka_s: np.ndarray) -> np.ndarray:
    return judge(EventClock(), event_s, kafka_s, POLICY).classes


def _pairs(event_s: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Different (minute, user) as one number each, in order."""
    return np.unique(event_s // 60 * USERS + users)


def _final_after(true_s: np.ndarray, written_s: np.ndarray, kafka_s: np.ndarray) -> list[float]:
    """Seconds from the end of each minute until the watermark has passed it by the allowed lateness."""
    clock, waits = EventClock(), []
    wanted = int(true_s.min()) // 60 * 60 + 60
    step = 64
    for i in range(0, len(true_s), step):
        clock = judge(clock, written_s[i : i + step], kafka_s[i : i + step], POLICY).clock
        watermark_s = clock.watermark_s(POLICY)
        while watermark_s is not None and watermark_s >= wanted + POLICY.allowed_lateness_s:
            waits.append(float(true_s[: i + step][-step:].max() - wanted))
            wanted += 60
        if len(waits) >= 200:
            break
    return waits or [float("nan")]


if __name__ == "__main__":
    columns = [
        "stream",
        "very late",
        "future",
        "moved",
        "late moved",
        "flips counted",
        "minutes right",
        "final after (s)",
    ]
    print("| " + " | ".join(columns) + " |")
    print("|---|" + "--:|" * (len(columns) - 1))
    for stream in STREAMS:
        print("| " + " | ".join(run(stream)) + " |", flush=True)
