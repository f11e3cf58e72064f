"""gc: removes files that no longer count, once nobody can still be reading them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import LakeError
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.upkeep import forget_files, known_paths, retired_before


def spill_folder(settings: Settings) -> Path:
    """Where DuckDB spills, and where the catalog is built; what a killed process leaves there goes with gc."""
    folder = settings.data_dir.absolute() / "spill"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LakeError(f"spill folder {folder} cannot be made: {error.strerror}; see UNIQ_DATA_DIR") from None
    return folder


# Whatever the grace for readers: a file without a name may be about to be committed.
ORPHAN_AGE_S = 3600


@dataclass
class GcReport:
    retired: int = 0  # files that were replaced, and whose grace is over
    orphans: int = 0  # files without a name, left by a crash or a lost race
    freed_bytes: int = 0


def collect_garbage(settings: Settings, ledger: Ledger, lake: Lake) -> GcReport:
    """Removes retired files and orphans older than `gc_grace_h`.

    An orphan's age is taken from the file itself, and those under an hour are always spared: another process
    may be about to commit them. A crash half way leaves rows of files that are gone, which the next run forgets.
    """
    report = GcReport()
    moment = ledger.now() - settings.gc_grace_h * 3600
    young = min(moment, ledger.now() - ORPHAN_AGE_S)
    # Listed before the ledger is asked: a file that is committed in between is then known.
    found = [path for path in lake.root.rglob("*") if path.is_file()]
    known = known_paths(ledger)
    retired = retired_before(ledger, moment)
    for name in retired:
        path = lake.absolute(name)
        try:
            report.freed_bytes += path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            pass  # another gc was quicker, or was killed before it could forget the file
        ledger.failpoint("gc.removed")
        report.retired += 1
    forget_files(ledger, retired)
    for path in found:
        name = path.relative_to(lake.root).as_posix()
        if name in known or name.startswith("empty/"):
            continue
        try:
            status = path.stat()
            if status.st_mtime < young:
                path.unlink()
                ledger.failpoint("gc.removed")
                report.orphans += 1
                report.freed_bytes += status.st_size
        except FileNotFoundError:
            continue  # another gc was quicker
    for left in spill_folder(settings).iterdir():
        try:
            if left.stat().st_mtime < young:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except FileNotFoundError:
            continue  # its process has just ended
    return report
