"""Asset checks. A tick knows their answers anyway, so it reports them itself: no run of their own.

None of them blocks: what must not be stored is refused before the commit.
"""

from __future__ import annotations

from collections.abc import Iterable

from dagster import AssetCheckResult, AssetCheckSeverity, AssetCheckSpec

from assets.metadata import Touched, complete_until_s
from uniq_pipeline.loading import LoadReport
from uniq_pipeline.windows import Grain, from_epoch

GROUP = "unique_users"
OWNERS = ["team:data"]

FRAMES = "frames"
ADMITTED = "admitted_frames"

# The newest complete minute may be this old: two missed ticks and a slow one.
FRESH_S = 180

# A sketch beyond five standard errors is broken: chance does that once in 1.7 million windows.
STANDARD_ERRORS = 5
# Of a handful of users, two in one register are already many standard errors.
FEW_USERS = 2


def counts_name(grain: Grain) -> str:
    """Name of the asset of a grain."""
    return f"{grain}_counts"


CONSERVATION = AssetCheckSpec(
    "conservation", asset=FRAMES, description="Each record delivered is in frames, held or quarantine."
)
FRESHNESS = AssetCheckSpec(
    "freshness",
    asset=counts_name(Grain.MINUTE),
    description=f"The newest complete minute ended at most {FRESH_S} s ago.",
)


def sketch_spec(grain: Grain) -> AssetCheckSpec:
    return AssetCheckSpec(
        "sketch_against_exact",
        asset=counts_name(grain),
        description=f"Where both are known, estimate and exact count differ by at most {STANDARD_ERRORS} "
        f"standard errors.",
    )


def specs_of(grain: Grain) -> list[AssetCheckSpec]:
    return [sketch_spec(grain), *([FRESHNESS] if grain is Grain.MINUTE else [])]


def conservation(drained: LoadReport) -> AssetCheckResult:
    came = drained.delivered + drained.admitted
    kept = drained.frames + drained.held + drained.quarantined
    return AssetCheckResult(
        asset_key=FRAMES,
        check_name=CONSERVATION.name,
        passed=came == kept,
        metadata={"delivered_and_admitted": came, "frames_held_and_quarantined": kept},
    )


def freshness(front_s: int | None, now_s: float) -> AssetCheckResult:
    """Only warns: a topic without new frames is not fresh either, and nothing is wrong with us then."""
    end_s = complete_until_s(front_s)
    return AssetCheckResult(
        asset_key=FRESHNESS.asset_key,
        check_name=FRESHNESS.name,
        passed=end_s is not None and now_s - end_s <= FRESH_S,
        severity=AssetCheckSeverity.WARN,
        description="no frame yet" if end_s is None else f"complete until {from_epoch(end_s):%Y-%m-%d %H:%M} UTC",
        metadata={} if end_s is None else {"seconds_behind": round(now_s - end_s, 1)},
    )


def sketch_against_exact(grain: Grain, touched: Iterable[Touched], lg_k: int) -> AssetCheckResult:
    """Over the windows that changed and have an exact count."""
    standard_error = 1.04 / 2 ** (lg_k / 2)
    windows, worst, broken = 0, 0.0, []
    for bucket in touched:
        for revision in bucket.changed.values():
            exact = revision.unique_users
            if exact is None:
                continue
            windows += 1
            off = abs(revision.estimate - exact)
            if exact > FEW_USERS:
                worst = max(worst, off / exact)
            if off > max(FEW_USERS, STANDARD_ERRORS * standard_error * exact):
                broken.append(f"{revision.window}: exact {exact}, estimate {revision.estimate:.1f}")
    spec = sketch_spec(grain)
    return AssetCheckResult(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=not broken,
        description="; ".join(broken[:3]) or None,
        metadata={
            "windows_compared": windows,
            "worst_error_percent": round(100 * worst, 3),
            "standard_error_percent": round(100 * standard_error, 3),
        },
    )
