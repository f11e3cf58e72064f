"""What a run looks at while ledger and lake are open: for its checks and plots. Nothing in it can fail a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from uniq_pipeline.errors import UniqError
from uniq_pipeline.ledger.health import (
    Balance,
    Contiguity,
    Recent,
    all_offsets,
    balance,
    newest_offsets,
    recent_batches,
)
from uniq_pipeline.ledger.logs import current_log, known_watermark_s
from uniq_pipeline.results import Workshop
from uniq_pipeline.trends import Point, newest_windows
from uniq_pipeline.windows import Grain

# How far back the plot of each grain reaches. A result file is read in a millisecond: a tick reads eight.
SPAN_S: Mapping[Grain, int] = {
    Grain.MINUTE: 90 * 60,
    Grain.HOUR: 48 * 3600,
    Grain.DAY: 62 * 86_400,
    Grain.WEEK: 366 * 86_400,
    Grain.MONTH: 3 * 366 * 86_400,
    Grain.YEAR: 10 * 366 * 86_400,
}

# What every tick can afford: the files of a few hours, days and months.
EACH_TICK = (Grain.MINUTE, Grain.HOUR, Grain.DAY)

# A first tick with years of backlog commits thousands of batches; the hourly job looks at all of them.
MOST_RANGES = 50


@dataclass(frozen=True)
class Vitals:
    """What was seen. `points` are the newest windows by grain, oldest first; `problem` is why there are none."""

    front_s: int | None
    recent: Recent
    balance: Recent | Balance
    offsets: Contiguity
    points: Mapping[Grain, list[Point]]
    problem: str | None = None


def front_s(shop: Workshop) -> int | None:
    """Event time has come this far; the event watermark trails it by the expected delay."""
    watermark_s = known_watermark_s(shop.ledger)
    return None if watermark_s is None else watermark_s + shop.settings.expected_delay_s


def look(shop: Workshop, grains: Iterable[Grain], *, batches: int = 0, thorough: bool = False) -> Vitals:
    """Looks at the ledger, and at the newest windows of some grains.

    batches   committed by the tick: so many offset ranges are looked at
    thorough  looks at every batch and offset range there ever was
    """
    ledger = shop.ledger
    recent = recent_batches(ledger, ledger.now() - 60 * shop.settings.check_span_min)
    front = front_s(shop)
    points: dict[Grain, list[Point]] = {}
    problem = None
    try:
        for grain in grains if front is not None else ():
            points[grain] = newest_windows(shop, grain, front - SPAN_S[grain], front)
    except UniqError as error:  # a damaged file must not stop the ticks: those that need it say so themselves
        problem = str(error)
    return Vitals(
        front_s=front,
        recent=recent,
        balance=balance(ledger) if thorough else recent,
        offsets=all_offsets(ledger)
        if thorough
        else newest_offsets(ledger, current_log(ledger, shop.settings.topic), min(batches, MOST_RANGES) + 1),
        points=points,
        problem=problem,
    )
