"""Commands that parse flags and fail as Docker's do.

click gives the option trees, help and completion; this gives Docker's usage
lines, its words for wrong flags and arguments, its exit codes (125 for a flag,
1 for everything else), boolean flags with a value (`--tty=false`), and groups
that import a command only when it is run. Every command of the CLI is made of
the classes here. Nothing here talks to a daemon.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

FALSE_PREFIX = "--false-"


class CliError(Exception):
    """An error for the user; its text is all that is printed."""

    exit_code = 1


class UsageMistake(CliError):
    """A wrong flag or argument; the usage line follows the text."""

    def __init__(self, text: str, context: click.Context, *, exit_code: int = 125, see: str = "Run") -> None:
        super().__init__(
            f"{text}\n\n{usage_line(context)}\n\n{see} '{context.command_path} --help' for more information"
        )
        self.exit_code = exit_code


def usage_line(context: click.Context) -> str:
    usage = getattr(
        context.command, "usage", "COMMAND" if isinstance(context.command, click.Group) else "[OPTIONS]"
    )
    return f"Usage:  {context.command_path} {usage}".rstrip()


class Flag(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A flag's type: `parse` turns its text into a value or raises ValueError with the reason."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            assert param is not None and ctx is not None
            names = ", ".join(sorted(param.opts, key=len))
            quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            raise UsageMistake(f'invalid argument {quoted} for "{names}" flag: {error}', ctx) from None

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name


class BoolFlag(click.Option):
    """A switch that also takes `=true` and `=false`; its value is None when not given."""

    def __init__(self, param_decls: Sequence[str], **attrs: Any) -> None:
        name = next(d for d in param_decls if d.startswith("--"))
        decls = [d if d != name else f"{name}/{FALSE_PREFIX}{name[2:]}" for d in param_decls]
        super().__init__(decls, **{"default": None, "is_flag": True, **attrs})

    @staticmethod
    def option(*param_decls: str, **attrs: Any) -> Callable[[Decorated], Decorated]:
        """As click.option, for a BoolFlag."""
        return click.option(*param_decls, cls=BoolFlag, **attrs)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return ", ".join(sorted(self.opts, key=len)), self.help or ""


class Command(click.Command):
    """One command. `usage` is what follows its path in the usage line; `arity` the
    least and greatest number of arguments (None: no limit), all given as `args`."""

    def __init__(
        self,
        *args: Any,
        usage: str = "[OPTIONS]",
        arity: tuple[int, int | None] = (0, 0),
        aliases: tuple[str, ...] = (),
        interspersed: bool = True,
        completes: Callable[[click.Context, str], list[str]] | None = None,
        **attrs: Any,
    ) -> None:
        super().__init__(*args, **attrs)
        self.usage = usage
        self.arity = arity
        self.aliases = aliases
        self.allow_interspersed_args = interspersed
        # With no arguments at all, one too many is ours to refuse, in Docker's words.
        self.allow_extra_args = arity == (0, 0)
        if arity != (0, 0):
            argument = click.Argument(["args"], nargs=-1, required=False)
            if completes is not None:
                argument._custom_shell_complete = lambda ctx, _param, text: [
                    click.shell_completion.CompletionItem(name) for name in completes(ctx, text)
                ]
            self.params.append(argument)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            args = self._checked(ctx, args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._check_arity(ctx, len(ctx.params.get("args", ())) + len(rest))
        return rest

    def _checked(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`args` with `--flag=false` rewritten for click; raises UsageMistake for a wrong flag."""
        options: dict[str, click.Option] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                options.update(dict.fromkeys(param.opts, param))
        checked: list[str] = []
        pending = list(args)
        while pending:
            arg = pending.pop(0)
            if arg == "--" or (not _is_flag(arg) and not self.allow_interspersed_args):
                return [*checked, arg, *pending]
            if not _is_flag(arg):
                checked.append(arg)
                continue
            found = _long(ctx, options, arg) if arg.startswith("--") else _short(ctx, options, arg)
            checked.append(found.text)
            if found.needs_value:
                if not pending:
                    raise UsageMistake(f"flag needs an argument: {found.described}", ctx)
                checked.append(pending.pop(0))
        return checked

    def _check_arity(self, ctx: click.Context, given: int) -> None:
        least, greatest = self.arity
        if given >= least and (greatest is None or given <= greatest):
            return
        if greatest == 0:
            wanted = "accepts no arguments"
        elif least == greatest:
            wanted = f"requires {least} argument{'s' * (least != 1)}"
        elif given < least:
            wanted = f"requires at least {least} argument{'s' * (least != 1)}"
        else:
            wanted = f"requires at most {greatest} argument{'s' * (greatest != 1)}"
        root = ctx.find_root().info_name
        raise UsageMistake(f"{root}: '{ctx.command_path}' {wanted}", ctx, exit_code=1, see="See")

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(usage_line(ctx) + "\n")


@dataclass(frozen=True)
class _Found:
    text: str
    needs_value: bool = False
    described: str = ""


def _is_flag(arg: str) -> bool:
    return len(arg) > 1 and arg.startswith("-")


def _long(ctx: click.Context, options: Mapping[str, click.Option], arg: str) -> _Found:
    name, equals, value = arg.partition("=")
    option = options.get(name)
    if option is None:
        raise UsageMistake(f"unknown flag: {name}", ctx)
    if not option.is_flag:
        return _Found(arg, needs_value=not equals, described=name)
    if not equals:
        return _Found(arg)
    if value not in _BOOLEANS:
        reason = f'strconv.ParseBool: parsing "{value}": invalid syntax'
        raise UsageMistake(f'invalid argument "{value}" for "{name}" flag: {reason}', ctx)
    return _Found(name if _BOOLEANS[value] or not option.secondary_opts else option.secondary_opts[0])


def _short(ctx: click.Context, options: Mapping[str, click.Option], arg: str) -> _Found:
    for position, letter in enumerate(arg[1:], start=1):
        option = options.get(f"-{letter}")
        if option is None:
            raise UsageMistake(f"unknown shorthand flag: '{letter}' in {arg}", ctx)
        if not option.is_flag:
            last = position == len(arg) - 1
            text = arg if last or arg[position + 1] != "=" else arg[: position + 1] + arg[position + 2 :]
            return _Found(text, needs_value=last, described=f"'{letter}' in {arg}")
    return _Found(arg)


_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


@dataclass(frozen=True)
class Lazy:
    """A subcommand that lives in `module` under `attribute`, imported when it is run."""

    module: str
    attribute: str
    help: str


class Group(click.Group):
    """A noun. Subcommands may be `Lazy` and may have aliases."""

    command_class = Command

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **attrs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **attrs})
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self._lazy.get(cmd_name)
        if lazy is not None:
            loaded = getattr(importlib.import_module(lazy.module), lazy.attribute)
            assert isinstance(loaded, click.Command)
            return loaded
        for command in self.commands.values():
            if cmd_name in getattr(command, "aliases", ()):
                return command
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is not None:
            return command.name, command, args[1:]
        if ctx.resilient_parsing:
            return None, None, args[1:]
        name = args[0]
        if _is_flag(name):
            raise UsageMistake(f"unknown flag: {name}", ctx)
        raise UsageMistake(
            f"{ctx.find_root().info_name}: unknown command: {ctx.command_path} {name}", ctx, exit_code=1
        )

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(usage_line(ctx) + "\n")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in self._lazy:
                rows.append((name, self._lazy[name].help))
            elif not self.commands[name].hidden:
                rows.append((name, self.commands[name].get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Root(Group):
    """The whole CLI: prints errors and ends with Docker's exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        try:
            result = super().main(*args, **kwargs)
        except CliError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)
        except click.exceptions.NoSuchOption as error:
            _fail(f"unknown flag: {error.option_name}", error)
        except click.UsageError as error:
            _fail(error.format_message(), error)
        except click.ClickException as error:
            click.echo(error.format_message(), err=True)
            sys.exit(1)
        except click.Abort:
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): what the interpreter
            # still flushes at its end must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        sys.exit(result if isinstance(result, int) else 0)


def _fail(text: str, error: click.UsageError) -> NoReturn:
    if error.ctx is not None:
        text = str(UsageMistake(text, error.ctx))
    click.echo(text, err=True)
    sys.exit(125)
