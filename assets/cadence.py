"""When a tick drains: some seconds after the minute's end, when its last ordinary frames have arrived."""

from __future__ import annotations

from uniq_pipeline.windows import MINUTE_S


def settle_wait_s(now_s: float, settle_s: float) -> float:
    """Seconds to wait at `now_s` so that the newest minute ended at least `settle_s` ago.

    Starting a run takes seconds by itself, and those count: a run that starts late does not wait at all.
    """
    return max(0.0, settle_s - now_s % MINUTE_S)
