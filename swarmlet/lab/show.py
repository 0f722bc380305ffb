"""How the demo looks: headings, commands as typed, findings, and the table at the end.

Only words and colours; what is done and measured is the demo's.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Show:
    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._chapter = 0
        self.times: list[tuple[str, str]] = []
        self.broken: list[str] = []
        """What did not hold, in the order in which it was found."""

    def title(self, text: str) -> None:
        self._console.rule(f"[bold]{escape(text)}")

    def chapter(self, text: str) -> None:
        self._chapter += 1
        self._console.print(f"\n[bold cyan]{self._chapter}. {escape(text)}")

    def say(self, text: str) -> None:
        self._console.print(f"   {escape(text)}")

    def command(self, words: Sequence[str]) -> None:
        self._console.print(f"   [bold]$ {escape(shlex.join(words))}")

    def output(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self._console.print(f"     [dim]{escape(line)}")

    def holds(self, what: str, true: bool, otherwise: str = "") -> bool:
        """A claim of the story, checked: shown, and remembered when it does not hold."""
        if true:
            self._console.print(f"   [green]✓[/] {escape(what)}")
        else:
            text = f"{what}: {otherwise}" if otherwise else what
            self._console.print(f"   [bold red]✗ {escape(text)}")
            self.broken.append(text)
        return true

    def time(self, what: str, seconds: float) -> None:
        self.times.append((what, f"{seconds:.2f} s"))

    def figure(self, what: str, value: str) -> None:
        self.times.append((what, value))

    def end(self, seconds: float) -> None:
        table = Table(title="What it took", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for what, value in self.times:
            table.add_row(escape(what), escape(value))
        self._console.print()
        self._console.print(table)
        if self.broken:
            self._console.print(f"[bold red]{len(self.broken)} of the claims did not hold:")
            for text in self.broken:
                self._console.print(f"   [red]✗ {escape(text)}")
        else:
            self._console.print(f"[bold green]Everything held. {seconds:.0f} s in all.")
