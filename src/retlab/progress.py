"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from tqdm import tqdm

PLAIN_INTERVAL_SECONDS = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, amount: float = 1) -> None:
        """So many units more are done."""

    def set_total(self, total: float) -> None:
        """The whole is now known to be so many units."""

    def note(self, text: str) -> None:
        """A few words beside the numbers, such as the loss."""


class _Bar:
    def __init__(self, bar: "tqdm[None]") -> None:
        self._bar = bar

    def advance(self, amount: float = 1) -> None:
        self._bar.update(amount)

    def set_total(self, total: float) -> None:
        self._bar.total = total

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)


class _Lines:
    """One line at most every PLAIN_INTERVAL_SECONDS, for logs."""

    def __init__(self, description: str, total: float | None, unit: str, done: float) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = self._first = done
        self._note = ""
        self._shown: tuple[float, str] | None = None
        # Where the output goes now: what this is the progress of may be made to print elsewhere.
        self._stream = sys.stdout
        self._started = self._printed = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        if time.monotonic() - self._printed >= PLAIN_INTERVAL_SECONDS:
            self.show()

    def set_total(self, total: float) -> None:
        self._total = total

    def note(self, text: str) -> None:
        self._note = text

    def close(self) -> None:
        """The last line, unless it was the one before."""
        if self._shown != (self._done, self._note):
            self.show()

    def show(self) -> None:
        self._shown = (self._done, self._note)
        self._printed = time.monotonic()
        seconds = self._printed - self._started
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        text = f"{self._description}: "
        if self._total:
            text += f"{_count(self._done)} of {counted(self._total, self._unit)}"
            text += f" ({100 * self._done / self._total:.0f} %)"
        else:
            text += counted(self._done, self._unit)
        text += f", {_count(rate)} {self._unit}s/s"
        if self._total and rate > 0 and self._done < self._total:
            text += f", {duration((self._total - self._done) / rate)} left"
        else:
            text += f", {duration(seconds)}"
        print(text + (f", {self._note}" if self._note else ""), file=self._stream, flush=True)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def counted(number: float, unit: str) -> str:
    """A number and what it counts, given in the singular: 1 document, 2,000 documents."""
    return f"{_count(number)} {unit}" + ("" if number == 1 else "s")


def visible(text: str) -> str:
    """Text without what moves a cursor or turns the direction of writing: such characters become a sign for them."""
    plain_text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in plain_text)


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextlib.contextmanager
def progress(description: str, total: float | None, unit: str, done: float = 0) -> Iterator[Progress]:
    """Show the progress of the work in the block.

    Args:
        description: what is done, a few words.
        total: units in all; None where it is not known.
        unit: what is counted, in the singular.
        done: units that an earlier, interrupted attempt already did.
    """
    if sys.stderr.isatty():
        sized = min(os.get_terminal_size(sys.stderr.fileno())) > 0
        with tqdm(
            desc=description,
            total=total,
            unit=f" {unit}s",
            # Few things are shown as whole numbers: 6/12, not 6.00/12.0.
            unit_scale=total is None or total >= 1000,
            initial=done,
            # On a terminal that does not know its size tqdm would show nothing.
            ncols=None if sized else 80,
            nrows=None if sized else 24,
            dynamic_ncols=sized,
            smoothing=0.1,
            mininterval=0.2,
        ) as bar:
            yield _Bar(bar)
    else:
        lines = _Lines(description, total, unit, done)
        yield lines
        lines.close()
