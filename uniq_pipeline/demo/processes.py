"""Child processes that end with their parent: started in order, stopped in reverse, none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_S = 30.0  # a code server waits for a tick that is running
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Starts children with their output in files of a folder.

    Each is the leader of its own process group: Ctrl-C in the terminal reaches only us, and stopping a child
    reaches what it has started itself.
    """

    def __init__(self, log_dir: Path, environment: Mapping[str, str]) -> None:
        self._log_dir = log_dir
        self._environment = dict(environment)
        self._children: list[Child] = []
        log_dir.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str]) -> Child:
        log = self._log_dir / f"{name}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def ended(self) -> Child | None:
        """A child that has ended by itself, if any."""
        return next((child for child in self._children if child.process.poll() is not None), None)

    def stop(self) -> None:
        """Asks the newest first, and waits; what does not end within STOP_S is killed with its group."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(STOP_S)
            # Its own children (code servers, runs) may outlive it by a moment, or be stuck.
            _end_group(child.process.pid)
            child.process.wait()
        self._children.clear()


def _end_group(group: int) -> None:
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience_s
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            while time.monotonic() < deadline:
                os.killpg(group, 0)  # raises once nobody is left
                time.sleep(0.05)


def _die_with_parent() -> None:
    """Linux: the kernel ends this process when the parent is gone, even after kill -9 of the parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
