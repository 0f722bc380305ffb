"""Named lines of progress: redrawn in place on a terminal, printed once where output is not one."""

from __future__ import annotations

import shutil
import sys
from typing import Protocol, TextIO

_BAR_WIDTH = 50
_LINE_WIDTH_WITH_BAR = 80


class Display(Protocol):
    def prepare(self, name: str) -> None:
        """Reserves a line, in the order of the calls."""

    def show(self, name: str, text: str, *, share: float | None = None, is_countdown: bool = False) -> None:
        """Sets a line. `share` (0 to 1) draws a bar; a countdown may change with time alone."""

    def close(self) -> None:
        """Leaves the cursor below the last line."""


def display_for(*, quiet: bool) -> Display:
    if quiet:
        return QuietDisplay()
    return TerminalDisplay(sys.stdout) if sys.stdout.isatty() else PlainDisplay(sys.stdout)


class QuietDisplay:
    def prepare(self, name: str) -> None:
        pass

    def show(self, name: str, text: str, *, share: float | None = None, is_countdown: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class PlainDisplay:
    """For logs and pipes: every line once, bars never, as Docker does."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: dict[str, str] = {}

    def prepare(self, name: str) -> None:
        if name not in self._lines:
            self.show(name, " ")

    def show(self, name: str, text: str, *, share: float | None = None, is_countdown: bool = False) -> None:
        known = self._lines.get(name)
        if share is not None or known == text:
            return
        if is_countdown and known is not None and known.partition(" ")[0] == text.partition(" ")[0]:
            return
        self._lines[name] = text
        self._out.write(f"{name}: {text}\n")
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


class TerminalDisplay:
    """Redraws a line where it stands."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: dict[str, str] = {}

    def prepare(self, name: str) -> None:
        if name not in self._lines:
            self.show(name, " ")

    def show(self, name: str, text: str, *, share: float | None = None, is_countdown: bool = False) -> None:
        width = shutil.get_terminal_size().columns
        line = f"{name}: {text}"
        if share is not None:
            line = f"{line} {_bar(share)}" if width >= _LINE_WIDTH_WITH_BAR else line
        # A line that wraps would count as two when the cursor moves up.
        line = line[: max(1, width - 1)]
        if self._lines.get(name) == line:
            return
        is_new = name not in self._lines
        self._lines[name] = line
        if is_new:
            self._out.write(f"{line}\n")
        else:
            up = len(self._lines) - list(self._lines).index(name)
            self._out.write(f"\x1b[{up}A\r\x1b[2K{line}\x1b[{up}B\r")
        self._out.flush()

    def close(self) -> None:
        self._out.flush()


def _bar(share: float) -> str:
    filled = min(_BAR_WIDTH, int(share * 100) // 2)
    return f"[{'=' * filled}>{' ' * (_BAR_WIDTH - filled)}]"
