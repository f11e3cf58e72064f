"""What a consumer of the refined topic has, decoded with the published schema and not with the product's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

from support.audit import read_back, read_topic
from uniq_pipeline.config import Settings

DOCS = Path(__file__).parents[2] / "docs"

Place = tuple[str, int, int]
Frame = tuple[int, str, dict[str, str]]  # event time, uid, dimensions


@cache
def published_schema() -> FileDescriptorProto:
    """docs/refined.proto, compiled as a consumer would."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "refined.binpb"
        assert protoc.main(["protoc", f"-I{DOCS}", f"--descriptor_set_out={out}", "refined.proto"]) == 0
        (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return file


@cache
def _message_class() -> Any:
    pool = DescriptorPool()
    pool.Add(published_schema())
    return GetMessageClass(pool.FindMessageTypeByName("uniq.refined.v1.Frame"))


def decoded(messages: Iterable[tuple[Any, bytes]]) -> list[Any]:
    return [_message_class().FromString(value) for _, value in messages]


def on_topic(settings: Settings) -> list[tuple[str, Any]]:
    """(key, message) of everything on the refined topic; nothing where there is no such topic yet."""
    found = list(read_topic(settings.kafka_bootstrap_servers, settings.refined_topic or ""))
    return list(zip((key for key, _ in found), decoded(found), strict=True))


def place_of(message: Any) -> Place:
    return message.topic, message.kafka_partition, message.kafka_offset


def consumed(messages: Iterable[Any]) -> dict[Place, Frame]:
    """What a consumer has that keeps the highest revision of each place."""
    newest: dict[Place, Any] = {}
    for message in messages:
        known = newest.get(place_of(message))
        if known is None or message.revision >= known.revision:
            newest[place_of(message)] = message
    return {
        place: (message.event_time, message.uid, dict(message.dimensions))
        for place, message in newest.items()
        if not message.withdrawn
    }


def accepted(settings: Settings) -> dict[Place, Frame]:
    """What is in frames/, by what the ledger names."""
    stored = read_back(settings, problems := [])
    assert problems == []
    return {
        (row["topic"], row["kafka_partition"], row["kafka_offset"]): (
            int(row["event_time"].timestamp()),
            row["uid"],
            dict(row["dimensions"] or ()),
        )
        for row in stored.files.get("frames", [])
    }
