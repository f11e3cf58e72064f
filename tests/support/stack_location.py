"""A code location for a real code server: ticks may run for seconds only, and one of them can be told to stop for ever.

While there is a file `fate` in DAGSTER_HOME the next tick takes it away, leaves its process id in `stopped`, and stops
itself where it has written its files and is about to commit them.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from assets.limits import TICK_LIMITS

# Before the jobs are made: they take their tags from it.
TICK_LIMITS["dagster/max_runtime"] = os.environ["TEST_TICK_LIMIT_S"]

from support.dagster_run import definitions  # noqa: E402

_HOME = Path(os.environ["DAGSTER_HOME"])


def _meet_fate(name: str) -> None:
    if name == "drain.before_commit":
        with suppress(FileNotFoundError):
            (_HOME / "fate").unlink()
            (_HOME / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)


defs = definitions(_meet_fate)
