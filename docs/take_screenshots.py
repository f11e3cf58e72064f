"""Takes the pictures of README and docs of a running Dagster UI with headless Chromium.

    python docs/take_screenshots.py http://127.0.0.1:3000 [FOLDER]

Start `make run` first and wait three minutes. FOLDER is where the pictures go; by default beside this file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Wide enough that the graph is drawn with its details.
PAGES = {
    "asset-graph.png": ("/asset-groups", (2500, 760)),
    "minute-counts.png": ("/assets/minute_counts?view=events", (1500, 900)),
    "frames.png": ("/assets/frames?view=events", (1500, 1400)),
}

# The pages load their data over GraphQL after they are there: Chromium waits this long, in its own time.
LOAD_MS = 20_000


def take(base_url: str, folder: Path) -> list[Path]:
    """Writes one PNG a page. Raises RuntimeError when Chromium is missing or draws nothing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise RuntimeError("Chromium is not installed")
    pictures = []
    for name, (page, (width, height)) in PAGES.items():
        picture = folder / name
        with tempfile.TemporaryDirectory() as profile:
            done = subprocess.run(
                [
                    browser,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                    "--hide-scrollbars",
                    f"--user-data-dir={profile}",
                    f"--window-size={width},{height}",
                    f"--virtual-time-budget={LOAD_MS}",
                    f"--screenshot={picture}",
                    base_url.rstrip("/") + page,
                ],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        if done.returncode != 0 or not picture.is_file():
            raise RuntimeError(f"Chromium could not draw {page}: {done.stderr[-1000:]}")
        pictures.append(picture)
    return pictures


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent
    for path in take(sys.argv[1], target):
        print(path)
