"""The functions that Docker's templates may call, and how Go prints and judges a value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_VERB = re.compile(r"%(?P<left>-)?(?P<width>\d{1,3})?(?:\.(?P<precision>\d{1,2}))?(?P<verb>[svdqf%])")


def go_text(value: Any) -> str:
    """A value as Go's fmt prints it with %v."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        inner = " ".join(f"{key}:{go_text(value[key])}" for key in sorted(value))
        return f"map[{inner}]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(go_text(item) for item in value) + "]"
    return str(value)


def truth(value: Any) -> bool:
    return bool(value)


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _join(items: Any, separator: str) -> str:
    if items is None:
        return ""
    if isinstance(items, Mapping):
        return separator.join(sorted(go_text(item) for item in items.values()))
    if not isinstance(items, list | tuple):
        raise TypeError(f"expected slice, got {type(items).__name__}")
    return separator.join(go_text(item) for item in items)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple | str):
            if not isinstance(key, int) or not 0 <= key < len(value):
                raise ValueError(f"index out of range: {go_text(key)}")
            value = value[key]
        else:
            raise TypeError(
                "index of untyped nil"
                if value is None
                else f"can't index item of type {type(value).__name__}"
            )
    return value


def _and(*values: Any) -> Any:
    return next((v for v in values if not truth(v)), values[-1])


def _or(*values: Any) -> Any:
    return next((v for v in values if truth(v)), values[-1])


def _printf(pattern: str, *values: Any) -> str:
    arguments = iter(values)

    def verb(match: re.Match[str]) -> str:
        if match["verb"] == "%":
            return "%"
        value = next(arguments, None)
        text = json.dumps(value) if match["verb"] == "q" else go_text(value)
        if match["verb"] == "f":
            text = f"{float(value or 0):.{match['precision'] or '6'}f}"
        width = int(match["width"] or 0)
        return text.ljust(width) if match["left"] else text.rjust(width)

    return _VERB.sub(verb, pattern)


def _println(*values: Any) -> str:
    return " ".join(go_text(v) for v in values) + "\n"


def _print(*values: Any) -> str:
    return "".join(go_text(v) for v in values)


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "json": to_json,
    "join": _join,
    "split": lambda text, separator: text.split(separator),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "pad": _pad,
    "truncate": lambda text, length: text[:length],
    "index": _index,
    "len": len,
    "print": _print,
    "println": _println,
    "printf": _printf,
    "and": _and,
    "or": _or,
    "not": lambda value: not truth(value),
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}

HEADER_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    name: lambda text, *_rest: text
    for name in ("json", "join", "split", "lower", "upper", "title", "truncate")
}
"""For the header line of a table: the column's title stays as it is."""
