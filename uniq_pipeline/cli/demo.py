"""`uniq-pipeline generate` and `uniq-pipeline demo`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import click

from uniq_pipeline.cli.output import Progress, complain
from uniq_pipeline.config import load_settings
from uniq_pipeline.demo.feed import feed
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.errors import InputError
from uniq_pipeline.kafka.sink import KafkaSink


@click.command()
@click.option("-n", "--frames", type=click.IntRange(1), default=1000, show_default=True, help="How many frames.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Frames of that many seconds instead.")
@click.option("--rate", type=float, default=200, show_default=True, help="Frames arriving a second.")
@click.option("--users", type=int, default=5_000, show_default=True, help="Different users.")
@click.option("--skew", type=float, default=0.8, show_default=True, help="How much more some users do: 0 not at all.")
@click.option("--delay", type=float, default=5, show_default=True, help="Most seconds an ordinary frame is delayed.")
@click.option("--late-share", type=float, default=0, show_default=True, help="Share of frames delayed for longer.")
@click.option("--late-by", type=float, default=100, show_default=True, help="Most seconds a late frame is delayed.")
@click.option("--flip-share", type=float, default=0, show_default=True, help="Share with one bit of ts flipped.")
@click.option("--flip-random", is_flag=True, help="Flipped ts are random 32-bit values instead.")
@click.option("--bad-share", type=float, default=0, show_default=True, help="Share of broken frames.")
@click.option("--small", is_flag=True, help="Frames of about 42 bytes instead of about 2 kB.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same frames.")
@click.option("--start", help="First arrival, as YYYY-MM-DDTHH:MM:SSZ or unix seconds.  [default: now]")
@click.option("--topic", help="Send to this Kafka topic instead of stdout.")
@click.option("--live", is_flag=True, help="Pace the frames by the clock, from now on (with --topic).")
def generate(
    frames: int,
    seconds: float | None,
    rate: float,
    users: int,
    skew: float,
    delay: float,
    late_share: float,
    late_by: float,
    flip_share: float,
    flip_random: bool,
    bad_share: float,
    small: bool,
    seed: int,
    start: str | None,
    topic: str | None,
    live: bool,
) -> None:
    """Writes demo frames: web logs as JSON, one a line, to stdout or to a topic.

    Root ts and uid stand anywhere among the keys; nested objects carry decoys of both; keys repeat; ts is a
    number or a string. By default all frames are good, and within --delay of their event time.

    \b
      uniq-pipeline generate -n 200000 --late-share 0.05 | uniq-pipeline count --format table
      uniq-pipeline generate --topic uniq.frames --live --seconds 600 --rate 1000
    """
    try:
        traffic = Traffic(
            TrafficProfile(
                frames_per_s=rate,
                users=users,
                user_skew=skew,
                ordinary_delay_s=delay,
                late_share=late_share,
                late_by_max_s=max(late_by, delay) if not late_share else late_by,
                flip_share=flip_share,
                flip_random=flip_random,
                bad_share=bad_share,
                small=small,
                seed=seed,
            )
        )
    except ValueError as error:
        raise InputError(f"generate: {error}") from None
    if live and (topic is None or start is not None):
        raise InputError("generate: --live goes with --topic, and not with --start")
    if seconds is not None:
        frames = max(1, round(seconds * rate))
    started = _instant(start)
    if topic is None:
        _to_stdout(traffic, started, frames)
    else:
        _to_topic(traffic, started, frames, topic, live)


def _to_stdout(traffic: Traffic, start_s: float, frames: int) -> None:
    out = sys.stdout.buffer
    progress, done = Progress("generate"), 0
    for chunk in traffic.frames(start_s, frames):
        out.write(b"\n".join(chunk) + b"\n")
        done += len(chunk)
        progress(done, frames)
    out.flush()
    progress.close()


def _to_topic(traffic: Traffic, start_s: float, frames: int, topic: str, live: bool) -> None:
    sink = KafkaSink(load_settings(topic=topic), topic)
    progress, done = Progress("generate"), 0
    if live:
        for sent in feed(traffic, sink, start_s=start_s, clock=time.time, sleep=time.sleep):
            done += sent
            progress(done, frames)
            if done >= frames:
                break
    else:
        for chunk in traffic.frames(start_s, frames):
            done += sink.send_frames(chunk)
            progress(done, frames)
    progress.close()
    complain(f"{done:,} frames sent to {topic}")


def _instant(text: str | None) -> float:
    if text is None:
        return time.time()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"generate: --start is {text!r}; YYYY-MM-DDTHH:MM:SSZ or unix seconds are allowed") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option("--rate", type=float, default=100, show_default=True, help="Demo frames a second.")
@click.option("--users", type=int, default=5_000, show_default=True, help="Different users.")
@click.option("--seconds", type=float, help="Stop by itself after that long.")
def demo(port: int, rate: float, users: int, seconds: float | None) -> None:
    """Everything at once: broker, traffic, Dagster with its schedules on. What `make run` calls.

    The broker is inside this process and forgets; ledger, lake and counts in UNIQ_DATA_DIR stay for the next
    start. With UNIQ_KAFKA_BOOTSTRAP_SERVERS set, that Kafka and its topic are used, and no traffic is made.
    """
    from uniq_pipeline.demo.stack import run_demo

    run_demo(load_settings(), port=port, frames_per_s=rate, users=users, stop_after_s=seconds)
