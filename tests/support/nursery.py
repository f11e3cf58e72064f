"""Worker processes that cost milliseconds: forked from one that has imported everything and started nothing.

Run as a script it is the nursery: it reads a request a line from stdin and answers a line on stdout. It is
the parent of its workers, so it can say how each ended. No client, DuckDB session or thread of ours exists
in it, so what it forks is as good as a process that was started afresh.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]

LOST_RACE = 7


class Nursery:
    """The side of the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.nursery"],
            cwd=TESTS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, job: Mapping[str, Any]) -> int:
        """Starts a worker (see `work`); returns its process id."""
        return self._ask({"start": dict(job)})

    def wait(self, pid: int) -> int:
        """Waits for the worker's end: its exit code, or minus the signal that killed it."""
        return self._ask({"wait": pid})

    def wait_until_stopped(self, pid: int) -> bool:
        """Waits until the worker has stopped itself; False when it ended instead."""
        return self._ask({"wait_until_stopped": pid})

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(20)


class Failpoint:
    """Kills or stops this process, or does nothing, when a named point is reached for the nth time.

    The name "*" stands for every point.
    """

    def __init__(self, name: str | None, nth: int, signal_number: int) -> None:
        self._name = name
        self._left = nth
        self._signal = signal_number

    def __call__(self, name: str) -> None:
        if self._name in (name, "*"):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)


def work(job: Mapping[str, Any]) -> int:
    """One run of the product, as cron or Dagster would do it.

    settings   keyword arguments of Settings
    do         "tick", "close" (a tick that also closes windows), "drain", "gc", "compact" (everything, as if all hours
               and days were over), "expire", or a move: "admit", "withdraw" (of all there is) or "replay"
    at_once    how many files a move commits together, or frames are forwarded
    at, nth    name of a failpoint and which of its calls
    signal     what this process sends itself there; SIGKILL unless said otherwise
    """
    from uniq_pipeline import compact, forward, move
    from uniq_pipeline.config import Settings
    from uniq_pipeline.drain import drain
    from uniq_pipeline.errors import LostRace
    from uniq_pipeline.expire import expire
    from uniq_pipeline.kafka.sink import KafkaSink
    from uniq_pipeline.kafka.source import KafkaSource
    from uniq_pipeline.maintain import collect_garbage
    from uniq_pipeline.tick import open_workshop, tick

    settings = Settings(**job["settings"])
    failpoint = Failpoint(job.get("at"), job.get("nth", 1), job.get("signal", signal.SIGKILL))
    do: str = job.get("do", "tick")
    try:
        with open_workshop(settings, failpoint=failpoint) as shop:
            if do == "drain":
                drain(settings, shop.ledger, shop.lake, KafkaSource(settings), failpoint=failpoint)
            elif do == "compact":
                compact.AGAIN_AT = 1
                assert compact.compact(shop, closed_before_s=1 << 40).failed == []
            elif do == "expire":
                assert expire(shop).failed == []
            elif do == "gc":
                collect_garbage(settings, shop.ledger, shop.lake)
            elif do in ("admit", "withdraw", "replay"):
                move.FILES_AT_ONCE = job.get("at_once", move.FILES_AT_ONCE)
                if do == "replay":
                    move.replay(shop)
                else:
                    getattr(move, do)(shop, 0, 1 << 40)
            else:
                forward.FRAMES_AT_ONCE = job.get("at_once", forward.FRAMES_AT_ONCE)
                report = tick(
                    shop,
                    KafkaSource(settings),
                    lambda: KafkaSink(settings, settings.results_topic or ""),
                    close_windows=do == "close",
                    open_refined_sink=lambda: KafkaSink(settings, settings.refined_topic or ""),
                )
                return LOST_RACE if report.lost_race else 0
    except LostRace:
        return LOST_RACE
    return 0


def _fork(work: Callable[[Mapping[str, Any]], int], job: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        code = work(job)
    except BaseException:
        text = traceback.format_exc()
        sys.stderr.write(text)
        if "log" in job:
            with open(job["log"], "a") as log:
                log.write(f"{dict(job)}\n{text}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    alive: set[int] = set()
    for line in sys.stdin:
        answer: Any
        match json.loads(line):
            case {"start": job}:
                answer = _fork(work, job)
                alive.add(answer)
            case {"wait": pid}:
                _, status = os.waitpid(pid, 0)
                alive.discard(pid)
                answer = os.waitstatus_to_exitcode(status)
            case {"wait_until_stopped": pid}:
                _, status = os.waitpid(pid, os.WUNTRACED)
                answer = os.WIFSTOPPED(status)
                if not answer:
                    alive.discard(pid)
        print(json.dumps(answer), flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    import uniq_pipeline.kafka.sink
    import uniq_pipeline.kafka.source
    import uniq_pipeline.maintain
    import uniq_pipeline.move
    import uniq_pipeline.tick  # noqa: F401

    _serve()
