"""A disk that can be full or read-only: a small file system in memory, mounted for one test.

Mounting needs rights. Where there are none, a test marked `mounts` runs again in a namespace of its own, in which
anybody may mount (conftest.py); where the system refuses that too, CI fails and a developer's machine skips it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

# Set in the namespace, so that a test there does not look for another one.
_INSIDE = "TEST_IN_NAMESPACE"  # without the prefix of settings: conftest.py removes those


class Disk:
    """What is mounted at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self, left: int = 0) -> None:
        """Takes all space but `left` bytes, in whole pages."""
        free = self.free_bytes - left
        with open(self._filler, "wb") as file:
            if free > 0:
                os.posix_fallocate(file.fileno(), 0, free)

    def clear(self) -> None:
        """Gives the space back."""
        self._filler.unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def remount(self, option: str) -> None:
        """`ro` or `rw`: root may write to any folder, but not to a file system that is read-only."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.root)], check=True)


@contextmanager
def mounted(root: Path, options: str) -> Iterator[Disk]:
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(root)], check=True)
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@cache
def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "tmpfs", folder]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode != 0:
            return False
        return subprocess.run(["umount", folder]).returncode == 0


def run_where_mounting_is_allowed(item: pytest.Function) -> bool:
    """Runs the test in a namespace where that is needed; False where it can run right here."""
    if _may_mount():
        return False
    here = "a file system cannot be mounted here, neither as this user nor in a namespace (unshare --map-root-user)"
    if _INSIDE in os.environ or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(here)
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", item.nodeid],
        cwd=item.config.rootpath,
        env={**os.environ, _INSIDE: "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"in a namespace of its own:\n{done.stdout}{done.stderr}", pytrace=False)
    return True
