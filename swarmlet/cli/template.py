"""The subset of Go's text/template that Docker's `--format` and `-f` need.

`Template(text).render(value)` for the tables and `inspect`. Fields, variables,
pipelines, if/else/range/with, trim markers and Docker's functions; no defined
sub-templates. A template can only read the value that it is given: there is no
way from it to Python's attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmlet.cli.command import CliError
from swarmlet.cli.template_functions import FUNCTIONS, go_text, truth

__all__ = ["Fields", "Template", "TemplateError"]


class TemplateError(CliError):
    def __init__(self, text: str) -> None:
        super().__init__(f"template parsing error: template: {text}")


class Fields(dict[str, Any]):
    """A struct: asking for a field that it does not have is an error, unlike in a map."""


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)
    | (?P<number>-?\d+(?:\.\d+)?)
    | (?P<path>\$\w*(?:\.[A-Za-z_]\w*)*|(?:\.[A-Za-z_]\w*)+|\.)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<mark>:=|[()|,=])
    )""",
    re.VERBOSE,
)
_ACTION = re.compile(
    r"\{\{(?P<left>-(?=\s))?(?P<body>(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|(?!\}\}).)*?)(?P<right>(?<=\s)-)?\}\}",
    re.DOTALL,
)
_KEYWORDS = ("if", "range", "with", "else", "end")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_NESTING_MAX = 50


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: str
    """Line and column, as Go's errors say them."""


@dataclass
class _Scope:
    dot: Any
    variables: dict[str, Any]
    functions: Mapping[str, Callable[..., Any]]


Node = Callable[[_Scope], str]
Expression = Callable[[_Scope], Any]


@dataclass
class _Block:
    keyword: str
    condition: Expression | None
    names: list[str]
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)
    in_else: bool = False
    chained: bool = False
    """Whether this block is the `if` of an `else if`, closed by the same `end`."""

    def add(self, node: Node) -> None:
        (self.otherwise if self.in_else else self.body).append(node)


class Template:
    """A parsed template. Raises TemplateError when `text` is not one."""

    def __init__(self, text: str) -> None:
        self._nodes = _parse(text)

    def render(self, value: Any, functions: Mapping[str, Callable[..., Any]] | None = None) -> str:
        """Raises TemplateError for a field that `value` does not have; `functions` replace Docker's."""
        return _run(self._nodes, _Scope(value, {"$": value}, {**FUNCTIONS, **(functions or {})}))


def _run(nodes: list[Node], scope: _Scope) -> str:
    return "".join(node(scope) for node in nodes)


def _parse(text: str) -> list[Node]:
    root = _Block("", None, [])
    stack = [root]
    position = 0
    trim = False
    for action in _ACTION.finditer(text):
        literal = text[position : action.start()]
        literal = literal.lstrip() if trim else literal
        literal = literal.rstrip() if action["left"] else literal
        if literal:
            stack[-1].add(_text(literal))
        position, trim = action.end(), bool(action["right"])
        body = action["body"].strip()
        if not (body.startswith("/*") and body.endswith("*/")):
            _take_action(
                list(_tokens(text, action.start("body"), action["body"])), stack, _line(text, position)
            )
    rest = text[position:]
    if "{{" in rest:
        raise TemplateError(f":{_line(text, len(text))}: unclosed action")
    if len(stack) > 1:
        raise TemplateError(f":{_line(text, len(text))}: unexpected EOF")
    root.add(_text(rest.lstrip() if trim else rest))
    return root.body


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _text(literal: str) -> Node:
    return lambda _scope: literal


def _tokens(text: str, start: int, body: str) -> Iterator[_Token]:
    position = 0
    body = body.rstrip()
    while position < len(body):
        match = _TOKEN.match(body, position)
        at = start + position
        if match is None or match.lastgroup is None:
            raise TemplateError(f":{_line(text, at)}: unexpected {body[position:].strip()[:1]!r} in command")
        at = start + match.start(match.lastgroup)
        column = at - (text.rfind("\n", 0, at) + 1)
        yield _Token(match.lastgroup, match[match.lastgroup], f":{_line(text, at)}:{column}")
        position = match.end()


def _take_action(tokens: list[_Token], stack: list[_Block], line: int) -> None:
    if len(stack) > _NESTING_MAX:
        raise TemplateError(f":{line}: nested too deep")
    keyword = tokens[0].text if tokens and tokens[0].text in _KEYWORDS else ""
    if keyword == "end":
        if len(stack) == 1:
            raise TemplateError(f":{line}: unexpected {{{{end}}}}")
        block = stack.pop()
        stack[-1].add(_block_node(block))
        if block.chained:
            _take_action(tokens, stack, line)
    elif keyword == "else":
        if len(stack) == 1 or stack[-1].in_else:
            raise TemplateError(f":{line}: unexpected {{{{else}}}}")
        stack[-1].in_else = True
        if len(tokens) > 1:
            block = _open_block(tokens[1:], line)
            block.chained = True
            stack.append(block)
    elif keyword:
        stack.append(_open_block(tokens, line))
    else:
        names, expression = _Parser(tokens, line).pipeline()
        stack[-1].add(_set_node(names, expression) if names else lambda scope: go_text(expression(scope)))


def _open_block(tokens: list[_Token], line: int) -> _Block:
    names, condition = _Parser(tokens[1:], line).pipeline()
    return _Block(tokens[0].text, condition, names)


def _set_node(names: list[str], expression: Expression) -> Node:
    def node(scope: _Scope) -> str:
        scope.variables[names[-1]] = expression(scope)
        return ""

    return node


def _block_node(block: _Block) -> Node:
    condition = block.condition
    assert condition is not None

    def node(scope: _Scope) -> str:
        value = condition(scope)
        if block.keyword == "range" and truth(value):
            return _range(block, value, scope)
        if block.keyword == "range":
            return _run(block.otherwise, scope)
        inner = _Scope(
            value if block.keyword == "with" else scope.dot, dict(scope.variables), scope.functions
        )
        if block.names:
            inner.variables[block.names[-1]] = value
        return _run(block.body, inner) if truth(value) else _run(block.otherwise, scope)

    return node


def _range(block: _Block, value: Any, scope: _Scope) -> str:
    if isinstance(value, Mapping):
        items = [(key, value[key]) for key in sorted(value)]
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        raise TemplateError(f"range can't iterate over {go_text(value)}")
    out = []
    for key, item in items:
        inner = _Scope(item, dict(scope.variables), scope.functions)
        if block.names:
            inner.variables[block.names[-1]] = item
        if len(block.names) == 2:
            inner.variables[block.names[0]] = key
        out.append(_run(block.body, inner))
    return "".join(out)


class _Parser:
    def __init__(self, tokens: list[_Token], line: int) -> None:
        self._tokens = tokens
        self._next = 0
        self._line = line

    def pipeline(self) -> tuple[list[str], Expression]:
        names = self._declared()
        expression = self._commands()
        if self._next < len(self._tokens):
            raise self._unexpected()
        return names, expression

    def _declared(self) -> list[str]:
        texts = [t.text for t in self._tokens[:4]]
        for count, mark in ((1, 1), (2, 3)):
            if len(texts) > mark and texts[mark] in (":=", "=") and texts[0].startswith("$"):
                self._next = mark + 1
                return [texts[0]] if count == 1 else [texts[0], texts[2]]
        return []

    def _commands(self) -> Expression:
        expression = self._command(None)
        while self._peek("|"):
            self._next += 1
            expression = self._command(expression)
        return expression

    def _command(self, piped: Expression | None) -> Expression:
        if self._next >= len(self._tokens):
            raise TemplateError(f":{self._line}: missing value for command")
        token = self._tokens[self._next]
        if token.kind == "word" and token.text not in ("true", "false", "nil"):
            self._next += 1
            if token.text not in FUNCTIONS:
                raise TemplateError(f':{self._line}: function "{token.text}" not defined')
            arguments = []
            while self._next < len(self._tokens) and not self._peek("|") and not self._peek(")"):
                arguments.append(self._operand())
            return _call(token, [*arguments, piped] if piped else arguments)
        operand = self._operand()
        if piped is not None:
            raise TemplateError(f":{self._line}: non executable command in pipeline")
        return operand

    def _operand(self) -> Expression:
        token = self._tokens[self._next]
        self._next += 1
        if token.kind == "string":
            text = token.text[1:-1]
            literal = (
                text if token.text[0] == "`" else re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), text)
            )
            return lambda _scope: literal
        if token.kind == "number":
            number = float(token.text) if "." in token.text else int(token.text)
            return lambda _scope: number
        if token.kind == "path":
            return _path(token)
        if token.text == "(":
            inner = self._commands()
            if not self._peek(")"):
                raise TemplateError(f":{self._line}: unclosed left paren")
            self._next += 1
            return inner
        if token.kind == "word" and token.text in ("true", "false", "nil"):
            constant = {"true": True, "false": False, "nil": None}[token.text]
            return lambda _scope: constant
        if token.kind == "word" and token.text in FUNCTIONS:
            return _call(token, [])
        self._next -= 1
        raise self._unexpected()

    def _peek(self, text: str) -> bool:
        return self._next < len(self._tokens) and self._tokens[self._next].text == text

    def _unexpected(self) -> TemplateError:
        return TemplateError(f':{self._line}: unexpected "{self._tokens[self._next].text}" in command')


def _call(token: _Token, arguments: list[Expression]) -> Expression:
    def call(scope: _Scope) -> Any:
        values = [argument(scope) for argument in arguments]
        try:
            return scope.functions[token.text](*values)
        except (ValueError, TypeError, LookupError) as error:
            raise TemplateError(
                f'{token.place}: executing "" at <{token.text}>: error calling {token.text}: {error}'
            ) from None

    return call


def _path(token: _Token) -> Expression:
    names = token.text.split(".")

    def walk(scope: _Scope) -> Any:
        if names[0].startswith("$"):
            if names[0] not in scope.variables:
                raise TemplateError(f'{token.place}: undefined variable "{names[0]}"')
            value = scope.variables[names[0]]
        else:
            value = scope.dot
        for name in names[1:]:
            if name:
                value = _get(value, name, token)
        return value

    return walk


def _get(value: Any, name: str, token: _Token) -> Any:
    where = f'{token.place}: executing "" at <{token.text}>'
    if isinstance(value, Fields):
        if name not in value:
            raise TemplateError(f"{where}: can't evaluate field {name}")
        return value[name]
    if isinstance(value, Mapping):
        return value.get(name)
    if value is None:
        raise TemplateError(f"{where}: nil pointer evaluating {name}")
    raise TemplateError(f"{where}: can't evaluate field {name}")
