"""Apache Kafka's jars: resolved by Maven, once, into a cache outside of the repository.

python -m support.kafka.jars        in tests/: fetches them and prints the folder, or what is missing
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
OLDEST_JAVA = 17


class KafkaUnavailable(Exception):
    """Real Apache Kafka cannot run here; says what is missing."""


def kafka_version() -> str:
    """The version that the pom names: `4.1.0`."""
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", POM.read_text())
    assert found is not None, POM
    return found[1]


def missing() -> str | None:
    """Why real Kafka cannot run here, in a few words; None when it can."""
    java = shutil.which("java")
    if java is None:
        return f"no java (needs Java {OLDEST_JAVA} or newer)"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < OLDEST_JAVA:
        return f"java is {found[1] if found else 'unreadable'} (needs {OLDEST_JAVA} or newer)"
    if not _folder().is_dir() and shutil.which("mvn") is None:
        return "no mvn (Maven fetches Apache Kafka)"
    return None


def kafka_jars() -> Path:
    """The folder with the jars; fetched when it is not there yet. Raises KafkaUnavailable."""
    why = missing()
    if why is not None:
        raise KafkaUnavailable(why)
    folder = _folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fetched:
        done = subprocess.run(
            [
                *("mvn", "--quiet", "--batch-mode", "--file", str(POM), "dependency:copy-dependencies"),
                *(f"-DoutputDirectory={fetched}/jars", "-DincludeScope=runtime"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise KafkaUnavailable(f"Maven could not fetch Apache Kafka {kafka_version()}:\n{done.stdout[-2000:]}")
        try:
            os.rename(f"{fetched}/jars", folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    return folder


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "uniq-pipeline" / f"kafka-{kafka_version()}"


if __name__ == "__main__":
    try:
        print(kafka_jars())
    except KafkaUnavailable as why:
        print(why)
        sys.exit(1)
