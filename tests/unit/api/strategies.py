"""Random messages of any type, drawn along their descriptors."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from swarmlet.api import pb

M = TypeVar("M", bound=Message)

_TEXT = st.text(max_size=8)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    # Added zero: JSON and Go do not tell -0.0 from 0.
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False, allow_infinity=False).map(
        lambda value: value + 0.0
    ),
}
_TIMES = st.builds(
    Timestamp,
    seconds=st.integers(-62_135_596_799, 253_402_300_799),
    nanos=st.sampled_from([0, 1, 120_000_000, 999_999_999]),
)


def messages(message_type: type[M]) -> st.SearchStrategy[M]:
    """Messages with any of the fields that are part of Docker's JSON."""
    return st.composite(_draw_message)(message_type)


def _draw_message(draw: st.DrawFn, message_type: type[M]) -> M:
    message = message_type()
    _fill(draw, message)
    return message


def _fill(draw: st.DrawFn, message: Message) -> None:
    fields = [f for f in message.DESCRIPTOR.fields if not f.GetOptions().Extensions[pb.internal]]
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda f: f.name)) if fields else []:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name).update(draw(st.dictionaries(_TEXT, _TEXT, max_size=2)))
        elif field.message_type is not None and field.is_repeated:
            for _ in range(draw(st.integers(1, 2))):
                _fill(draw, getattr(message, field.name).add())
        elif field.message_type is Timestamp.DESCRIPTOR:
            getattr(message, field.name).CopyFrom(draw(_TIMES))
        elif field.message_type is not None:
            target = getattr(message, field.name)
            target.SetInParent()
            _fill(draw, target)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_scalars(field), min_size=1, max_size=2)))
        else:
            setattr(message, field.name, draw(_scalars(field)))


def _scalars(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return _SCALARS[field.type]


def without_empty_always(message: M) -> M:
    """A copy in which `always` messages that say nothing are absent: in JSON both look the same."""
    copy = type(message)()
    copy.CopyFrom(message)
    _strip(copy)
    return copy


def _strip(message: Message) -> None:
    for field, value in list(message.ListFields()):
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for item in value:
                _strip(item)
            continue
        _strip(value)
        is_always = field.GetOptions().Extensions[pb.always]
        if is_always and field.message_type is not Timestamp.DESCRIPTOR and value.ByteSize() == 0:
            message.ClearField(field.name)
