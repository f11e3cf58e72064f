"""The messages of the refined topic: a frame each, in Protocol Buffers. Sole importer of google.protobuf.

The schema for others is docs/refined.proto, and a test holds the two together. The class is made here from the same
fields, not generated: generated code refuses every older runtime, and Dagster says which there is.

Why Protocol Buffers, and not Avro: docs/refined.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "uniq.refined.v1"

# Bytes of a uid that are its key: a longer one twice in a message would be more than a topic takes.
LONGEST_KEY = 1_000

# What a message is made of, of the columns of frames/.
COLUMNS = ["event_time", "uid", "topic", "kafka_partition", "kafka_offset", "dimensions"]

_TYPES = {
    "event_time": FieldDescriptorProto.TYPE_INT64,
    "uid": FieldDescriptorProto.TYPE_STRING,
    "topic": FieldDescriptorProto.TYPE_STRING,
    "kafka_partition": FieldDescriptorProto.TYPE_INT32,
    "kafka_offset": FieldDescriptorProto.TYPE_INT64,
    "dimensions": FieldDescriptorProto.TYPE_MESSAGE,
    "revision": FieldDescriptorProto.TYPE_UINT64,
    "withdrawn": FieldDescriptorProto.TYPE_BOOL,
}


def descriptor() -> FileDescriptorProto:
    """The schema, as a compiler of docs/refined.proto describes it."""
    one, many = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    file = FileDescriptorProto(name="refined.proto", package=PACKAGE, syntax="proto3")
    frame = file.message_type.add(name="Frame")
    for number, (name, kind) in enumerate(_TYPES.items(), 1):
        frame.field.add(name=name, number=number, type=kind, label=one)
    entry = frame.nested_type.add(name="DimensionsEntry")
    for number, name in enumerate(("key", "value"), 1):
        entry.field.add(name=name, number=number, type=FieldDescriptorProto.TYPE_STRING, label=one)
    entry.options.map_entry = True
    dimensions = next(field for field in frame.field if field.name == "dimensions")
    dimensions.label, dimensions.type_name = many, f".{PACKAGE}.Frame.DimensionsEntry"
    return file


def _frame_class() -> type:
    pool = DescriptorPool()
    pool.Add(descriptor())
    return GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.Frame"))


Frame = _frame_class()


def messages(rows: pa.RecordBatch, revision: int = 0, withdrawn: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each row of frames; the key is the uid, or the beginning of a long one."""
    # One message for all rows: to make a new one of each takes a third longer.
    frame = Frame(revision=revision, withdrawn=withdrawn)
    seconds = rows["event_time"].cast(pa.int64()).to_numpy() // 1_000_000
    columns = (rows[name].to_pylist() for name in COLUMNS[1:])
    for event_s, uid, topic, kafka_partition, kafka_offset, dimensions in zip(seconds.tolist(), *columns, strict=True):
        frame.event_time = event_s
        frame.uid = uid
        frame.topic = topic
        frame.kafka_partition = kafka_partition
        frame.kafka_offset = kafka_offset
        frame.dimensions.clear()
        if dimensions:
            frame.dimensions.update(dimensions)
        yield uid.encode()[:LONGEST_KEY], frame.SerializeToString(deterministic=True)
