"""Lists as Docker prints them: a table, a template per row, or one JSON object a line.

Called by every `ls` and `ps`, and by `inspect` for `--format`. It decides how rows
look, never what is in them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from swarmlet.cli.command import CliError
from swarmlet.cli.template import Fields, Template
from swarmlet.cli.template_functions import HEADER_FUNCTIONS, to_json

if TYPE_CHECKING:
    from google.protobuf.message import Message

FORMAT_HELP = """Format output using a custom template: 'table' (default), 'table TEMPLATE', 'json' (one
object a line), or a Go template such as '{{.ID}}'"""

_CELL_MIN = 10
_CELL_PADDING = 3


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    headers: Mapping[str, str],
    default: str,
    template: str | None,
    quiet: bool = False,
) -> None:
    """Prints `rows`, whose keys are Docker's placeholders.

    `default` is the table's template, used without `--format` or with "table";
    `headers` maps placeholders to column titles.
    """
    chosen = template or "table"
    if quiet and chosen in ("table", "raw"):
        chosen = "{{.ID}}"
    elif chosen == "json":
        chosen = "{{json .}}"
    elif chosen == "table":
        chosen = f"table {default}"
    is_table = chosen.startswith("table")
    text = chosen.removeprefix("table").strip(" ").replace("\\t", "\t").replace("\\n", "\n")
    parsed = Template(text)
    lines = [parsed.render(Fields(sorted(row.items()))) for row in rows]
    if is_table:
        lines = _align([parsed.render(dict(headers), HEADER_FUNCTIONS), *lines])
    for line in lines:
        click.echo(line)


def _align(lines: Sequence[str]) -> list[str]:
    """Columns of tab-separated cells, padded as Go's tabwriter does; the last cell of a line is not."""
    split = [part.split("\t") for line in lines for part in line.split("\n")]
    widths: dict[int, int] = {}
    for cells in split:
        for column, cell in enumerate(cells[:-1]):
            widths[column] = max(widths.get(column, _CELL_MIN), _width(cell) + _CELL_PADDING)
    return [
        "".join(cell + " " * (widths[i] - _width(cell)) for i, cell in enumerate(cells[:-1])) + cells[-1]
        for cells in split
    ]


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pretty_word(word: str) -> str:
    """ "rollback_paused" stays one word; only the first letter turns upper case."""
    return word[:1].upper() + word[1:].lower()


def inspect(references: Sequence[str], template: str | None, fetch: Callable[[str], Message]) -> None:
    """Prints the objects that `references` name, all that are found, as Docker's `inspect`.

    Raises CliError for those that were not, after the others were printed.
    """
    from swarmlet.api.dockerjson import to_docker

    parsed = Template(template) if template and template != "json" else None
    errors: list[str] = []
    found: list[Message] = []
    for reference in references:
        try:
            found.append(fetch(reference))
        except CliError as error:
            errors.append(str(error))
    if parsed is not None:
        for message in found:
            click.echo(parsed.render(struct_of(message)))
        if not found:
            click.echo()
    else:
        shown = [to_docker(message) for message in found]
        click.echo(to_json(shown) if template == "json" else json.dumps(shown, indent=4, ensure_ascii=False))
    if errors:
        raise CliError("\n".join(errors))


def struct_of(message: Message) -> Fields:
    """`message` as a template sees it: Docker's field names, absent ones with Go's zero value."""
    from swarmlet.api.dockerjson import to_docker

    return _Struct(message.DESCRIPTOR, to_docker(message))


class _Struct(Fields):
    """Docker's JSON for `json`, and every field of the type for paths."""

    def __init__(self, descriptor: Any, shown: Mapping[str, Any]) -> None:
        super().__init__(shown)
        self._fields = {f.json_name: f for f in descriptor.fields}

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __missing__(self, name: str) -> Any:
        field = self._fields[name]
        if _is_map(field):
            return {}
        if field.is_repeated:
            return []
        if field.message_type is not None or field.has_presence:
            return None
        return "" if field.cpp_type in (field.CPPTYPE_STRING, field.CPPTYPE_ENUM) else field.default_value

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        field = self._fields.get(name)
        if field is None or field.message_type is None or _is_map(field):
            return value
        if isinstance(value, list):
            return [_Struct(field.message_type, item) for item in value]
        return _Struct(field.message_type, value) if isinstance(value, dict) else value


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def fail_with(errors: Sequence[str]) -> None:
    """Raises CliError with all of `errors`, when there are any."""
    if errors:
        raise CliError("\n".join(errors))
