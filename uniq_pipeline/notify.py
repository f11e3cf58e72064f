"""Telling a webhook of a failure: a JSON document, at most one in a while about the same thing, and never an error.

What was sent when is in a small file, so that processes share it. The address is a secret (it often holds a token):
nothing here shows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniq_pipeline.config import Settings

TIMEOUT_S = 5.0
TRIES = 3
FIRST_WAIT_S = 1.0  # before the second try; twice as long before the third

# After a webhook did not answer it is left alone so long: a storm of failures must not wait for it each time.
REST_S = 60.0

# A thing is forgotten so long after it was last sent.
FORGET_S = 30 * 86_400

# What differs between two errors that are the same: numbers, ids, times.
_VARYING = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*|\d+", re.IGNORECASE)


@dataclass(frozen=True)
class RunFailure:
    """A run of a job that failed; `at` is when, seconds since 1970."""

    job: str
    run_id: str
    error: str
    at: float

    @property
    def likeness(self) -> str:
        """The same for failures of a job whose errors differ in numbers and ids only."""
        plain = f"{self.job}\n{_VARYING.sub('#', self.error)}"
        return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()[:32]


def notify_failure(
    settings: Settings,
    failure: RunFailure,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Posts a failure to the webhook of the settings; says in words what it did. Does not raise.

    The same failure is posted once in `failure_webhook_every_min`; the next post says how many were left out.
    """
    if settings.failure_webhook_url is None:
        return "not sent: UNIQ_FAILURE_WEBHOOK_URL is not set"
    state_file = settings.data_dir.absolute() / "notified.json"
    state = _read(state_file)
    seen = state["sent"].get(failure.likeness, {"at": 0.0, "left_out": 0})
    since = now() - seen["at"]
    if 0 <= since < settings.failure_webhook_every_min * 60:
        state["sent"][failure.likeness] = {**seen, "left_out": seen["left_out"] + 1}
        _write(state_file, state)
        return f"not sent: the same was sent {since / 60:.0f} minutes ago"
    if now() < state["rests_until"]:
        return "not sent: the webhook did not answer a moment ago"
    document = {
        "text": f"uniq-pipeline: {failure.job} failed: {failure.error}",
        "job": failure.job,
        "run_id": failure.run_id,
        "error": failure.error,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(failure.at)),
        "same_before": seen["left_out"],
    }
    if settings.dagster_url is not None:
        document["link"] = f"{settings.dagster_url.rstrip('/')}/runs/{failure.run_id}"
    problem = _post(settings.failure_webhook_url.get_secret_value(), document, sleep)
    if problem is None:
        state["sent"][failure.likeness] = {"at": now(), "left_out": 0}
    else:
        state["rests_until"] = now() + REST_S
    _write(state_file, {**state, "sent": {k: v for k, v in state["sent"].items() if now() - v["at"] < FORGET_S}})
    return "sent" if problem is None else f"not sent: {problem}; see UNIQ_FAILURE_WEBHOOK_URL"


def _post(url: str, document: dict[str, Any], sleep: Callable[[float], None]) -> str | None:
    """None when it was taken, else why not, without the address."""
    import http.client  # costs every start of a run 20 ms, and most never need it
    import urllib.error
    import urllib.request

    body = json.dumps(document, ensure_ascii=True).encode()
    wait_s, problem = FIRST_WAIT_S, ""
    for attempt in range(TRIES):
        if attempt:
            sleep(wait_s)
            wait_s *= 2
        try:
            request = urllib.request.Request(
                url, body, {"Content-Type": "application/json", "User-Agent": "uniq-pipeline"}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            problem = f"the webhook answered {error.code}"
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                return problem  # it would answer the same again
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Their texts may quote the address.
            problem = f"the webhook cannot be reached ({type(error).__name__})"
    return problem


def _read(path: Path) -> dict[str, Any]:
    """What was sent; nothing where the file is missing or damaged: then one message too many is sent."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        sent = {str(k): {"at": float(v["at"]), "left_out": int(v["left_out"])} for k, v in state["sent"].items()}
        return {"sent": sent, "rests_until": float(state["rests_until"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"sent": {}, "rests_until": 0.0}


def _write(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all. A disk that is full must not hide the failure that is being told."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
