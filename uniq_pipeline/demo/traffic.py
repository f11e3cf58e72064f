"""Deterministic web-log frames for the demo: what arrives when, and the truth about each frame.

Everything is drawn from `(seed, whole second of arrival)`, so a generator restarted at any second,
or asked in slices of any length, gives the same frames. No clock is read: times are passed in.
Times are seconds since 1970 UTC, and every interval is half-open, `[start, end)`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import NamedTuple

import numpy as np

from uniq_pipeline.demo.weblog import TS_FORMS, full_template, small_template

TEMPLATES = 120  # varied enough for a parser; fewer repeat more, and the demo broker keeps 20 MiB compressed
FRAMES_PER_CHUNK = 10_000  # 20 MB of full frames


class Kind(IntEnum):
    """What happened to a frame on its way. The kinds exclude each other."""

    ORDINARY = 0
    LATE = 1
    FLIPPED = 2
    BAD = 3


class Damage(IntEnum):
    """How a `Kind.BAD` frame is broken. Each of them is a frame that cannot be counted."""

    TRUNCATED = 0
    INVALID_UTF8 = 1
    MISSING_UID = 2
    NULL_TS = 3
    ARRAY = 4


@dataclass(frozen=True)
class TrafficProfile:
    """The demo's traffic. Shares are fractions of all frames; their sum is at most 1.

    Raises ValueError naming the field and its allowed range.
    """

    frames_per_s: float = 200.0
    """Mean arrival rate, frames/s, in (0, 1000000]. Each second holds its rounded share exactly."""
    users: int = 5_000
    """Number of distinct users that can appear, in [1, 2**40]."""
    user_skew: float = 0.8
    """Zipf-like exponent, in [0, 4]: user of rank r is drawn about r**-skew; 0 is uniform."""
    late_share: float = 0.001
    """Share of late frames, in [0, 1]. The default leaves 99.9% within `ordinary_delay_s`."""
    late_by_max_s: float = 300.0
    """Late frames are delayed uniformly by [ordinary_delay_s, late_by_max_s) seconds; at most 31 days."""
    ordinary_delay_s: float = 5.0
    """Other frames are delayed by [0, ordinary_delay_s) seconds, most by a fifth of it; in [0, 3600]."""
    flip_share: float = 0.001
    """Share of frames, in [0, 1], with one bit of the 32-bit timestamp flipped."""
    flip_random: bool = False
    """Replace those timestamps by a random value in [0, 2**32) instead of flipping one bit."""
    bad_share: float = 0.001
    """Share of broken frames, in [0, 1]; each `Damage` equally often."""
    small: bool = False
    """Frames of about 42 bytes (ts and uid only) instead of about 2 KB."""
    seed: int = 1
    """Seed in [0, 2**63): the same seed gives the same users and frames."""

    def __post_init__(self) -> None:
        if not 0 < self.frames_per_s <= 1_000_000:
            raise ValueError(f"frames_per_s must be in (0, 1000000], not {self.frames_per_s}")
        for field, low, high in (
            ("users", 1, 2**40),
            ("user_skew", 0, 4),
            ("late_share", 0, 1),
            ("late_by_max_s", 0, 31 * 86_400),
            ("ordinary_delay_s", 0, 3_600),
            ("flip_share", 0, 1),
            ("bad_share", 0, 1),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise ValueError(f"{field} must be in [{low}, {high}], not {value}")
        if self.late_share and self.late_by_max_s < self.ordinary_delay_s:
            raise ValueError(
                f"late_by_max_s must be in [ordinary_delay_s = {self.ordinary_delay_s}, {31 * 86_400}] "
                f"when late_share is above 0, not {self.late_by_max_s}"
            )
        if self.late_share + self.flip_share + self.bad_share > 1:
            raise ValueError("late_share + flip_share + bad_share must be in [0, 1]")


class Record(NamedTuple):
    """A frame and the truth about it. `payload` is what a reader gets to see."""

    arrival_s: float
    """When it reaches the topic."""
    event_s: int
    """The whole second in which it truly happened."""
    written_ts: int | None
    """The whole second its root ts says: other than `event_s` if flipped, None if bad."""
    uid: str
    kind: Kind
    damage: Damage | None
    payload: bytes


class _Second(NamedTuple):
    """The frames arriving in one whole second, as columns in arrival order."""

    arrival_s: np.ndarray
    event_s: np.ndarray
    written_s: np.ndarray
    uids: list[bytes]
    kind: np.ndarray
    spare: np.ndarray
    template: np.ndarray


class Traffic:
    """The frames of one profile, by arrival time. Holds no position and is cheap to ask again."""

    def __init__(self, profile: TrafficProfile) -> None:
        self.profile = profile
        rng = Random(profile.seed)
        build = small_template if profile.small else full_template
        forms = [TS_FORMS[i % len(TS_FORMS)] for i in range(TEMPLATES)]
        self._templates = [build(rng, form, "") for form in forms]
        self._broken = {
            damage: [build(rng, form, leave_out) for form in TS_FORMS]
            for damage, leave_out in ((Damage.MISSING_UID, "uid"), (Damage.NULL_TS, "ts"))
        }
        self._cached: tuple[int, _Second] | None = None

    def between(self, start_s: float, end_s: float) -> list[bytes]:
        """Frames arriving in [start_s, end_s), in arrival order. Measured: 0.5 M full, 1 M small/s."""
        frames: list[bytes] = []
        for plan, lo, hi in self._slices(start_s, end_s):
            frames += self._render(plan, lo, hi)
        return frames

    def records_between(self, start_s: float, end_s: float) -> list[Record]:
        """The frames of `between(start_s, end_s)`, each with the truth about it."""
        records: list[Record] = []
        for plan, lo, hi in self._slices(start_s, end_s):
            for i, payload in enumerate(self._render(plan, lo, hi), lo):
                kind = Kind(plan.kind[i])
                bad = kind is Kind.BAD
                records.append(
                    Record(
                        arrival_s=float(plan.arrival_s[i]),
                        event_s=int(plan.event_s[i]),
                        written_ts=None if bad else int(plan.written_s[i]),
                        uid=plan.uids[i].decode(),
                        kind=kind,
                        damage=_damage(plan.spare[i]) if bad else None,
                        payload=payload,
                    )
                )
        return records

    def frames(self, start_s: float, count: int) -> Iterator[list[bytes]]:
        """The first `count` frames arriving from `start_s` on, in chunks of 1..FRAMES_PER_CHUNK."""
        if count < 0:
            raise ValueError(f"count must be at least 0, not {count}")
        second = math.floor(start_s)
        while count:
            for plan, lo, hi in self._slices(max(start_s, second), second + 1):
                for at in range(lo, min(hi, lo + count), FRAMES_PER_CHUNK):
                    chunk = self._render(plan, at, min(hi, at + FRAMES_PER_CHUNK, at + count))
                    count -= len(chunk)
                    yield chunk
            second += 1

    def _slices(self, start_s: float, end_s: float) -> Iterator[tuple[_Second, int, int]]:
        if not 0 <= start_s <= end_s <= 2**32:
            raise ValueError(f"need 0 <= start_s <= end_s <= 2**32, not [{start_s}, {end_s})")
        for second in range(math.floor(start_s), math.ceil(end_s)):
            rate = self.profile.frames_per_s
            count = math.floor((second + 1) * rate) - math.floor(second * rate)
            if count:
                plan = self._second(second, count)
                lo, hi = np.searchsorted(plan.arrival_s, (start_s, end_s)).tolist()
                yield plan, lo, hi

    def _second(self, second: int, count: int) -> _Second:
        # The last second is kept: a live feed asks for it in slices of some 20 ms.
        if self._cached and self._cached[0] == second:
            return self._cached[1]
        p = self.profile
        rng = np.random.default_rng((p.seed, second))
        arrival, fate, delay, user, spare = rng.random((5, count))
        # Whole microseconds, because near 2**31 a float64 second still tells those apart.
        arrival_s = second + np.sort(np.floor(arrival * 1e6)) / 1e6
        kind = np.zeros(count, np.uint8)
        kind[fate < p.bad_share + p.flip_share + p.late_share] = Kind.LATE
        kind[fate < p.bad_share + p.flip_share] = Kind.FLIPPED
        kind[fate < p.bad_share] = Kind.BAD
        # Exponential with a fifth of the bound as its mean, cut off at the bound by inversion.
        delay_s = np.where(
            kind == Kind.LATE,
            p.ordinary_delay_s + delay * (p.late_by_max_s - p.ordinary_delay_s),
            np.log1p(-delay * -math.expm1(-5)) * (-p.ordinary_delay_s / 5),
        )
        event_s = np.maximum(np.floor(arrival_s - delay_s), 0).astype(np.int64)
        flipped = (spare * 2**32).astype(np.int64) if p.flip_random else event_s ^ (1 << (spare * 32).astype(np.int64))
        plan = _Second(
            arrival_s=arrival_s,
            event_s=event_s,
            written_s=np.where(kind == Kind.FLIPPED, flipped, event_s),
            uids=_uids(_ranks(user, p.users, p.user_skew), p.seed),
            kind=kind,
            spare=spare,
            template=rng.integers(0, TEMPLATES, count),
        )
        self._cached = (second, plan)
        return plan

    def _render(self, plan: _Second, lo: int, hi: int) -> list[bytes]:
        join = b"".join
        frames = [
            join((head, b"%d" % ts, middle, uid, tail) if ts_first else (head, uid, middle, b"%d" % ts, tail))
            for (head, middle, tail, ts_first), ts, uid in zip(
                map(self._templates.__getitem__, plan.template[lo:hi].tolist()),
                plan.written_s[lo:hi].tolist(),
                plan.uids[lo:hi],
                strict=True,
            )
        ]
        for i in np.flatnonzero(plan.kind[lo:hi] == Kind.BAD).tolist():
            frames[i] = self._break(frames[i], plan, lo + i)
        return frames

    def _break(self, frame: bytes, plan: _Second, i: int) -> bytes:
        damage = _damage(plan.spare[i])
        if damage is Damage.TRUNCATED:
            return frame[: 1 + int(plan.spare[i] * len(Damage) * (len(frame) - 1))]
        if damage is Damage.INVALID_UTF8:
            return frame.replace(plan.uids[i], b"\xff" + plan.uids[i][1:])
        if damage is Damage.ARRAY:
            return b"[" + frame + b"]"
        pool = self._broken[damage]
        template = pool[plan.template[i] % len(pool)]
        slot = plan.uids[i] if damage is Damage.NULL_TS else b"%d" % plan.written_s[i]
        return template.head + slot + template.tail


def _damage(spare: float) -> Damage:
    return Damage(int(spare * len(Damage)))


def _ranks(uniform: np.ndarray, users: int, skew: float) -> np.ndarray:
    """Ranks in [0, users) by inverting the density x**-skew over [1, users + 1): no table of users."""
    if abs(skew - 1) < 1e-9:
        x = (users + 1.0) ** uniform
    else:
        x = (1 + uniform * ((users + 1.0) ** (1 - skew) - 1)) ** (1 / (1 - skew))
    return np.minimum(x.astype(np.int64) - 1, users - 1)


def _uids(ranks: np.ndarray, seed: int) -> list[bytes]:
    """16 hex digits a user: SplitMix64's finaliser (Steele, Lea, Flood 2014), a bijection, so no two meet."""
    z = ranks.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.frombuffer(z.astype(">u8").tobytes().hex().encode(), "S16").tolist()
