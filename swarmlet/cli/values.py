"""Durations, sizes and numbers in the syntax of Docker's flags, and back for people.

Pure functions for the flag types and the output. Parsers raise ValueError with
Docker's (that is, Go's) words; nothing here knows a flag or a message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from fractions import Fraction

_UNITS_NS: Mapping[str, int] = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([^\d.]+)")
_INT64_MAX = 2**63 - 1
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?([kmgtpe]?)(i?b)?", re.IGNORECASE)
_SIZE_POWERS = "kmgtpe"


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration: "1m30s", "250ms", "0"."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    total = Decimal(0)
    position = 0
    while position < len(rest):
        part = _DURATION_PART.match(rest, position)
        if part is None:
            if re.fullmatch(r"\d+(\.\d*)?|\.\d+", rest[position:]):
                raise ValueError(f'time: missing unit in duration "{text}"')
            raise ValueError(f'time: invalid duration "{text}"')
        unit = _UNITS_NS.get(part[2])
        if unit is None:
            raise ValueError(f'time: unknown unit "{part[2]}" in duration "{text}"')
        total += Decimal(part[1]) * unit
        position = part.end()
    if not rest or total > _INT64_MAX:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * int(total.to_integral_value(ROUND_DOWN))


def parse_positive_duration(text: str) -> int:
    nanoseconds = parse_duration(text)
    if nanoseconds < 0:
        raise ValueError("duration cannot be negative")
    return nanoseconds


def format_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: "1m30s", "500ms", "0s"."""
    if nanoseconds < 0:
        return "-" + format_duration(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanoseconds < size * 1_000:
            return _decimal(nanoseconds, size) + unit
    hours, rest = divmod(nanoseconds, _UNITS_NS["h"])
    minutes, rest = divmod(rest, _UNITS_NS["m"])
    text = _decimal(rest, _UNITS_NS["s"]) + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _decimal(number: int, size: int) -> str:
    whole, part = divmod(number, size)
    fraction = str(part).rjust(len(str(size)) - 1, "0").rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)


def parse_bytes(text: str) -> int:
    """Bytes of a size with binary units: "512m", "1.5GiB", "100"."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    power = _SIZE_POWERS.index(match[2].lower()) + 1 if match[2] else 0
    size = int(Decimal(match[1]) * 1024**power)
    if size > _INT64_MAX:
        raise ValueError(f"invalid size: '{text}'")
    return size


def format_bytes(size: int) -> str:
    """A size as Docker prints it: "512MiB", "1.953KiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            return f"{value:.4g}{unit}"
        value /= 1024
    return f"{value:.4g}EiB"


def parse_cpus(text: str) -> int:
    """Billionths of a CPU of "0.5", "2" or "1/4"."""
    try:
        nano = Fraction(text) * 1_000_000_000
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"failed to parse {text} as a rational number") from None
    if nano.denominator != 1:
        raise ValueError("value is too precise")
    return int(nano)


def parse_uint(text: str) -> int:
    """A number from 0 to 2^64-1."""
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 2**64:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def parse_int(text: str) -> int:
    """A number that fits in 64 bits with a sign."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    if not -(2**63) <= int(text) < 2**63:
        raise ValueError(f'strconv.ParseInt: parsing "{text}": value out of range')
    return int(text)


def parse_int32(text: str) -> int:
    number = parse_int(text)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f'strconv.ParseInt: parsing "{text}": value out of range')
    return number


def parse_ratio(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f'strconv.ParseFloat: parsing "{text}": invalid syntax') from None
    if not math.isfinite(number):
        raise ValueError(f'strconv.ParseFloat: parsing "{text}": value out of range')
    return number


def parse_bool(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_moment(text: str, now: datetime) -> datetime:
    """The time that `--since` names: a date, an RFC 3339 time, Unix seconds, or how long ago ("42m")."""
    try:
        return now - timedelta(microseconds=parse_duration(text) / 1000)
    except ValueError:
        pass  # not a duration: one of the absolute forms below
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return datetime.fromtimestamp(float(Decimal(text)), UTC)
        moment = datetime.fromisoformat(text)
    except (ValueError, InvalidOperation, OverflowError, OSError):
        raise ValueError(
            f'parsing time "{text}": want a time like 2013-01-02T13:23:37Z or a duration like 42m'
        ) from None
    return moment if moment.tzinfo else moment.astimezone()


def human_duration(seconds: float) -> str:
    """How long ago, in Docker's words: "5 seconds", "About a minute", "3 weeks"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, size, unit in (
        (48, 1, "hours"),
        (24 * 7 * 2, 24, "days"),
        (24 * 30 * 2, 24 * 7, "weeks"),
        (24 * 365 * 2, 24 * 30, "months"),
    ):
        if hours < limit:
            return f"{hours // size} {unit}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ellipsis(text: str, width: int) -> str:
    """`text`, cut to `width` characters with an ellipsis as the last."""
    return text if len(text) <= width else text[: width - 1] + "…"


def short_id(identifier: str) -> str:
    return identifier.partition(":")[2][:12] if ":" in identifier else identifier[:12]


def familiar_image(image: str) -> str:
    """An image as people write it: no digest beside a tag, no default registry."""
    name, at, _digest = image.partition("@")
    last = name.rsplit("/", 1)[-1]
    if ":" not in last:
        return image
    for prefix in ("docker.io/library/", "docker.io/", "index.docker.io/library/", "index.docker.io/"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name if at else image


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts "web.2" before "web.10"."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]
