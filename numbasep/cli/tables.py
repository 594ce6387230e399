"""What the command line prints: tables for people, of full width where nobody watches."""

from __future__ import annotations

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

# Tables that go into a file or a pipe are never cut.
UNLIMITED = 10_000


def console() -> Console:
    """Return the console of standard output."""
    width = None if sys.stdout.isatty() else UNLIMITED
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, soft_wrap=False)


def table(*columns: str, left: int = 1) -> Table:
    """Return a table whose first ``left`` columns hold text, the others numbers."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return made


def titled(title: str, made: Table) -> Group:
    """Return a table under a title, which may be the wider of the two."""
    return Group(Text(title, style="bold"), made)


def pairs() -> Table:
    """Return a table of names and what they are."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    return made


def quantity(value: float) -> str:
    """Return a count in three digits: 1.23 M."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        # 999.5 would be written 1e+03.
        if value >= 0.9995 * 10**power:
            return f"{_digits(value / 10**power)} {prefix}"
    return f"{value:.0f}"


def _digits(value: float) -> str:
    # 9.995 would be written 9.99 or 10.00.
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{places}f}"


def size(value: float) -> str:
    """Return a number of bytes in three digits: 1.23 MB."""
    number = quantity(value)
    return f"{number}B" if " " in number else f"{number} B"


def percent(value: float) -> str:
    """Return a fraction in percent."""
    return "exact" if value == 0 else f"{100 * value:.2g} %"


def duration(seconds: float) -> str:
    """Return a time in three digits."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms"
