"""Takes the pictures of README and docs of a running Dagster UI with headless Chromium.

    python docs/take_screenshots.py http://127.0.0.1:3000 [FOLDER]

Start `make run` first and wait three minutes. FOLDER is where the pictures go; by default beside this file. Needs
Chromium and the extra `browser`. The pictures of two years are taken by `bench/ui.py --pictures docs`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from dagster_ui import chromium

# Wide enough that the graph is drawn with its details; then a text that is there once the page has its data.
PAGES = {
    "asset-graph.png": ("/asset-groups", (2500, 760), "year_counts"),
    "minute-counts.png": ("/assets/minute_counts?view=events", (1500, 900), "newest_windows"),
    "frames.png": ("/assets/frames?view=events", (1500, 1400), "lateness"),
}

LOAD_MS = 60_000
# What is drawn after that text: plots, and the state of each node of the graph.
SETTLE_MS = 3_000


def take(base_url: str, folder: Path) -> list[Path]:
    """Writes one PNG a page. Raises RuntimeError when Chromium is missing, playwright's TimeoutError without data."""
    pictures = []
    with chromium() as browser:
        for name, (path, (width, height), text) in PAGES.items():
            page = browser.new_page(base_url=base_url, viewport={"width": width, "height": height})
            page.goto(path)
            page.get_by_text(text).first.wait_for(timeout=LOAD_MS)
            page.wait_for_timeout(SETTLE_MS)
            pictures.append(folder / name)
            page.screenshot(path=pictures[-1])
            page.close()
    return pictures


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent
    for picture in take(sys.argv[1], target):
        print(picture)
