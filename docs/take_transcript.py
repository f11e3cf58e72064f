"""Types what docs/sql.md says into a DuckDB shell, and writes down what the shell answers.

    python docs/take_transcript.py [--check]

Makes the three days of frames the page speaks of in a temporary folder. With --check it changes nothing and exits
with 1 where the page says something else than the shell. Needs the `duckdb` shell of the test extra.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).with_name("sql.md")
BLOCK = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
OPENED = "$ duckdb data/uniq.duckdb"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="uniq-transcript-") as folder:
        before, after = PAGE.read_text(), retyped(Path(folder))
    if options.check:
        sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "page", "shell"))
        return int(before != after)
    PAGE.write_text(after)
    return 0


def retyped(folder: Path) -> str:
    """The page with the answers that a shell gives now; `folder` is where its commands run."""
    environment = {**os.environ, "TZ": "UTC", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def answered(block: re.Match[str]) -> str:
        lines = block[1].splitlines()
        commands = [line[2:] for line in lines if line.startswith("$ ")]
        statements = [line[2:] for line in lines if line.startswith("D ")]
        if not statements:
            script = "set -e; " + "; ".join(commands)
            subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True, capture_output=True)
            exported = [part for command in commands if command.startswith("export ") for part in shlex.split(command)]
            environment.update(part.split("=", 1) for part in exported if "=" in part)
            return block[0]
        opened = [OPENED] if OPENED in lines else []
        answers = [f"D {statement}\n{_typed(statement, folder, environment)}" for statement in statements]
        return "```console\n" + "".join(line + "\n" for line in opened) + "".join(answers) + "```\n"

    return BLOCK.sub(answered, PAGE.read_text())


def _typed(statement: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["duckdb", "data/uniq.duckdb"],
        input=statement + "\n",
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode or done.stderr:
        raise SystemExit(f"{statement}\n{done.stderr}")
    return "".join(line.rstrip() + "\n" for line in done.stdout.splitlines())


if __name__ == "__main__":
    sys.exit(main())
