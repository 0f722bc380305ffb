"""Docker's JSON for the object model, driven by the descriptors alone.

Whoever shows an object to a Docker client, or takes one from it, calls `to_docker`
and `from_docker`: the command line's `inspect` and `--format json`, the Engine API.
Nothing here knows a type by name; what protobuf cannot say (a field that is always
written, a word that is not the enum value's name) is an option in
proto/swarmlet/v1/options.proto.

It never validates beyond the shape (that is control's work), never reads or writes a
field marked `internal`, and never puts a value into an error, since it may be a
secret; the one exception is an unknown word of an enum.

The rules follow Go's encoding/json over Docker's api/types/swarm: keys match without
regard to case, null is as good as absent, unknown keys are ignored, what is empty is
left out unless Docker's field has no omitempty. An `always` message that is absent
and one that is empty look the same in JSON; reading gives the absent one.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from swarmlet.api import pb
from swarmlet.api.errors import InvalidArgument

M = TypeVar("M", bound=Message)

ZERO_TIME: Final = "0001-01-01T00:00:00Z"
"""How Go writes a time that was never set."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO_TIME_SECONDS = -62_135_596_800
_LAST_TIME_SECONDS = 253_402_300_799
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)
_INTEGER_FROM_FLOAT_MAX = 1e21
"""From here Go writes a float with an exponent."""

_INTEGER_RANGES: Final[dict[int, tuple[int, int]]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}

_ZERO_VALUES: Final[dict[int, str | bytes]] = {
    FieldDescriptor.TYPE_STRING: "",
    FieldDescriptor.TYPE_BYTES: b"",
}


def to_docker(message: Message) -> dict[str, Any]:
    """The message as Docker's API would show it, of plain dicts, lists, strings, numbers and bools.

    Raises ValueError for a time outside the years 1 to 9999.
    """
    written: dict[str, Any] = {}
    for field in _fields_of(message.DESCRIPTOR):
        value = getattr(message, field.name)
        present = message.HasField(field.name) if field.has_presence else bool(value)
        if not present and not field.always:
            continue
        if field.map_value is not None:
            written[field.key] = {str(k): _write(field.map_value, value[k]) for k in sorted(value)}
        elif field.is_repeated:
            written[field.key] = [_write(field.descriptor, item) for item in value]
        elif not present and isinstance(value, Timestamp):
            written[field.key] = ZERO_TIME
        else:
            written[field.key] = _write(field.descriptor, value)
    return written


def dumps(message: Message) -> str:
    """`to_docker` as one line of JSON. Raises ValueError for what JSON cannot hold."""
    return json.dumps(to_docker(message), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_docker(message_type: type[M], data: object) -> M:
    """The message that parsed JSON describes.

    Raises InvalidArgument with the path of what does not fit:
    "TaskTemplate.ContainerSpec.Env[2]: expected a string".
    """
    message = message_type()
    _read_message(message, data, "")
    return message


# ---- what the descriptors say ------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    descriptor: FieldDescriptor
    name: str
    key: str
    always: bool
    has_presence: bool
    is_repeated: bool
    map_value: FieldDescriptor | None


@cache
def _fields_of(descriptor: Descriptor) -> tuple[_Field, ...]:
    """The fields that are part of Docker's JSON, in the order of their declaration."""
    return tuple(
        _Field(
            descriptor=field,
            name=field.name,
            key=field.json_name,
            always=field.GetOptions().Extensions[pb.always],
            has_presence=field.has_presence,
            is_repeated=field.is_repeated,
            map_value=_map_value_of(field),
        )
        for field in descriptor.fields
        if not field.GetOptions().Extensions[pb.internal]
    )


@cache
def _fields_by_key(descriptor: Descriptor) -> dict[str, _Field]:
    return {field.key.casefold(): field for field in _fields_of(descriptor)}


def _map_value_of(field: FieldDescriptor) -> FieldDescriptor | None:
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return None
    return entry.fields_by_name["value"]


@cache
def _words_of(enum: EnumDescriptor) -> dict[int, str]:
    """Docker's word for each number: TASK_STATE_RUNNING is "running"."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    words = {}
    for value in enum.values:
        options = value.GetOptions()
        if options.HasExtension(pb.word):
            words[value.number] = options.Extensions[pb.word]
        else:
            words[value.number] = value.name.removeprefix(prefix).lower().replace("_", "-")
    return words


# ---- writing -----------------------------------------------------------------


def _write(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return _write_time(value)
    if isinstance(value, Message):
        return to_docker(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return _write_float(value, is_single=field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT)
    if field.enum_type is not None:
        # A number without a word comes from a newer version.
        return _words_of(field.enum_type).get(value, str(value))
    return value


def _write_time(time: Timestamp) -> str:
    if not _ZERO_TIME_SECONDS <= time.seconds <= _LAST_TIME_SECONDS:
        raise ValueError(f"a time outside the years 1 to 9999: {time.seconds} s")
    whole = (_EPOCH + timedelta(seconds=time.seconds)).isoformat()[:19]
    fraction = f".{time.nanos:09}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"


def _write_float(value: float, *, is_single: bool) -> float | int:
    """The shortest number that reads back the same, as Go writes it."""
    if not math.isfinite(value):
        return value
    if value.is_integer() and abs(value) < _INTEGER_FROM_FLOAT_MAX:
        return int(value)
    if is_single:
        for digits in range(6, 9):
            shorter = float(f"{value:.{digits}g}")
            if struct.unpack("<f", struct.pack("<f", shorter))[0] == value:
                return shorter
    return value


# ---- reading -----------------------------------------------------------------


def _read_message(message: Message, data: object, path: str) -> None:
    if not isinstance(data, Mapping):
        raise _expected(path, "an object")
    known = _fields_by_key(message.DESCRIPTOR)
    # As in Go the last of several spellings counts, and null changes nothing.
    given: dict[str, tuple[_Field, object]] = {}
    for key, value in data.items():
        field = known.get(str(key).casefold())
        if field is not None and value is not None:
            given[field.key] = (field, value)
    for field, value in given.values():
        _read_field(message, field, value, f"{path}.{field.key}" if path else field.key)


def _read_field(message: Message, field: _Field, value: object, path: str) -> None:
    if field.map_value is not None:
        _read_map(getattr(message, field.name), field.map_value, value, path)
    elif field.is_repeated:
        _read_list(getattr(message, field.name), field.descriptor, value, path)
    elif field.descriptor.message_type is not None:
        _check_alternatives(message, field, path)
        target = getattr(message, field.name)
        target.SetInParent()
        _read_into(target, value, path)
        if _is_unset(target, field):
            message.ClearField(field.name)
    else:
        _check_alternatives(message, field, path)
        setattr(message, field.name, _read_scalar(field.descriptor, value, path))


def _is_unset(target: Message, field: _Field) -> bool:
    """Whether what was just read is only how Docker shows a message that is absent."""
    if isinstance(target, Timestamp):
        return target.seconds == _ZERO_TIME_SECONDS and target.nanos == 0
    return field.always and target.ByteSize() == 0


def _check_alternatives(message: Message, field: _Field, path: str) -> None:
    oneof = field.descriptor.containing_oneof
    if oneof is not None and message.WhichOneof(oneof.name) is not None:
        keys = ", ".join(other.json_name for other in oneof.fields)
        raise InvalidArgument(f"{path}: only one of {keys} can be given")


def _read_map(target: Any, value_field: FieldDescriptor, data: object, path: str) -> None:
    if not isinstance(data, Mapping):
        raise _expected(path, "an object")
    for key, value in data.items():
        name = _read_string(key, path)
        if value_field.message_type is not None:
            _read_into(target[name], {} if value is None else value, f"{path}[{name}]")
        else:
            target[name] = _read_scalar(value_field, value, f"{path}[{name}]")


def _read_list(target: Any, field: FieldDescriptor, data: object, path: str) -> None:
    if not isinstance(data, list | tuple):
        raise _expected(path, "a list")
    for number, value in enumerate(data):
        if field.message_type is not None:
            _read_into(target.add(), {} if value is None else value, f"{path}[{number}]")
        else:
            target.append(_read_scalar(field, value, f"{path}[{number}]"))


def _read_into(target: Message, value: object, path: str) -> None:
    if isinstance(target, Timestamp):
        _read_time(target, value, path)
    else:
        _read_message(target, value, path)


def _read_scalar(field: FieldDescriptor, value: object, path: str) -> Any:
    if value is None:
        # Within a list or a map null is Go's zero value.
        return _ZERO_VALUES.get(field.type, 0)
    if field.enum_type is not None:
        return _read_word(field.enum_type, value, path)
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise _expected(path, "true or false")
        return value
    if kind in _INTEGER_RANGES:
        low, high = _INTEGER_RANGES[kind]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _expected(path, f"a whole number from {low} to {high}")
        return value
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _read_bytes(value, path)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _read_string(value, path)
    return _read_float(value, path, is_single=kind == FieldDescriptor.CPPTYPE_FLOAT)


def _read_string(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _expected(path, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _expected(path, "a string of valid Unicode") from None
    return value


def _read_bytes(value: object, path: str) -> bytes:
    if not isinstance(value, str):
        raise _expected(path, "a string in base64")
    try:
        # Go's decoder skips line ends too.
        return base64.b64decode(value.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        raise _expected(path, "a string in base64") from None


def _read_float(value: object, path: str, *, is_single: bool) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _expected(path, "a number")
    try:
        # The shortest form of the largest number is a little above it, and is rounded here.
        struct.pack("<f" if is_single else "<d", value)
    except (OverflowError, struct.error):
        raise _expected(path, "a smaller number") from None
    if not math.isfinite(value):
        raise _expected(path, "a number")
    return float(value)


def _read_word(enum: EnumDescriptor, value: object, path: str) -> int:
    words = _words_of(enum)
    allowed = ", ".join(word for word in words.values() if word)
    if not isinstance(value, str):
        raise _expected(path, f"one of {allowed}")
    if not value:
        # Docker takes the empty word for the default.
        return 0
    for number, word in words.items():
        if word == value.lower():
            return number
    raise InvalidArgument(f"{path}: unknown word {json.dumps(value)}, expected one of {allowed}")


def _read_time(target: Timestamp, value: object, path: str) -> None:
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _expected(path, "a time as in RFC 3339")
    date, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        raise _expected(path, "a time as in RFC 3339") from None
    since_epoch = moment - _EPOCH
    seconds = since_epoch.days * 86_400 + since_epoch.seconds
    if not _ZERO_TIME_SECONDS <= seconds <= _LAST_TIME_SECONDS:
        raise _expected(path, "a time in the years 1 to 9999")
    target.seconds = seconds
    target.nanos = int((fraction or "")[:9].ljust(9, "0"))


def _expected(path: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{path or 'the document'}: expected {what}")
