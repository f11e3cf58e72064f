"""What a rebuilt ledger takes over of computed windows: the newest result file of each bucket."""

from __future__ import annotations

import calendar
import re
import time
from collections import defaultdict
from dataclasses import dataclass

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import FileDamaged, SettingError
from uniq_pipeline.lake import Lake
from uniq_pipeline.rebuild.remains import Progress
from uniq_pipeline.windows import BUCKET, GRAINS, Grain, Window, iso, to_epoch, window_at

_RESULT_NAME = re.compile(r"results/(\w+)/(\w+)=(\d{4}-\d\d-\d\dT\d{4})/v(\d+)-\w+\.parquet")
_LG_K_BYTE = 3  # of an HLL state (sql/hll/30_layout.sql)


@dataclass(frozen=True)
class ResultFile:
    """The newest result file of a bucket.

    revisions  (window, the one that is stored)
    closed     windows whose count is exact because their uid set said so
    """

    grain: Grain
    bucket: Window
    version: int
    path: str
    revisions: list[tuple[Window, int]]
    closed: frozenset[Window]
    provisional: int
    final_end_s: int | None  # end of its last final window


def newest_results(
    settings: Settings, lake: Lake, notices: list[str], progress: Progress
) -> tuple[list[ResultFile], list[str]]:
    """The result file of the highest version of each bucket that can be read, and all other computed files.

    Two of one version are one that was committed and one that was not; either will do, all is computed again.
    Raises SettingError when the results were made under another time zone or precision.
    """
    others = lake.listing("sets")
    versions: dict[tuple[Grain, str], list[tuple[int, str]]] = defaultdict(list)
    for path in lake.listing("results"):
        name = _RESULT_NAME.fullmatch(path)
        grain = next((grain for grain in GRAINS if name and grain == name[1] and BUCKET[grain] == name[2]), None)
        if name and grain:
            versions[grain, name[3]].append((int(name[4]), path))
        else:
            others.append(path)
    results = []
    for done, ((grain, start), files) in enumerate(sorted(versions.items()), 1):
        files.sort(reverse=True)
        taken = None
        for version, path in files:
            if taken is None:
                try:
                    taken = _result_file(settings, lake, grain, start, version, path)
                    results.append(taken)
                    continue
                except FileDamaged as error:
                    notices.append(
                        f"{error}: an older version is taken over, if there is one; revisions it had may come again"
                    )
            others.append(path)
        progress(done, len(versions), "result files")
    return results, others


def _result_file(settings: Settings, lake: Lake, grain: Grain, start: str, version: int, path: str) -> ResultFile:
    start_s = calendar.timegm(time.strptime(start, "%Y-%m-%dT%H%M"))
    bucket = window_at(BUCKET[grain], start_s, settings.zone)
    if bucket.start_s != start_s:
        raise SettingError(
            f"the lake's results are of another time zone than UNIQ_TIMEZONE, {settings.timezone}: {path} is of a "
            f"{BUCKET[grain]} that starts at {iso(start_s)}, and none does there. Nothing was changed."
        )
    table = lake.read(path, ["window_start", "window_end", "unique_users", "status", "revision", "hll"])
    for hll in table["hll"].to_pylist():
        if hll is not None and hll[_LG_K_BYTE] != settings.lg_k:
            raise SettingError(
                f"the lake's results were made with lg_k={hll[_LG_K_BYTE]} ({path}), and UNIQ_LG_K is {settings.lg_k}: "
                f"they would not agree. Set it to {hll[_LG_K_BYTE]}, or use another UNIQ_DATA_DIR. Nothing was changed."
            )
    rows = table.drop_columns(["hll"]).to_pylist()
    windows = [(Window(grain, to_epoch(r["window_start"]), to_epoch(r["window_end"])), r["revision"]) for r in rows]
    final = [window.end_s for (window, _), row in zip(windows, rows, strict=True) if row["status"] == "final"]
    exact = (window for (window, _), row in zip(windows, rows, strict=True) if row["unique_users"] is not None)
    return ResultFile(
        grain,
        bucket,
        version,
        path,
        windows,
        closed=frozenset(exact if grain is not Grain.MINUTE else ()),
        provisional=len(rows) - len(final),
        final_end_s=max(final, default=None),
    )
