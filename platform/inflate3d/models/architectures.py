"""What is known of each 2D architecture without building it: family, parameters, levels, how time is mixed.

The table beside this file is written by `make architectures` (inflate3d.reports.survey), which builds every net without
data; that takes hours, reading it a millisecond. No torch here: lists answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("architectures.tsv")
COLUMNS = ("name", "family", "parameters", "reductions", "time")


@dataclass(frozen=True)
class Architecture:
    """One net that timm or torchvision registers.

    family: the module of timm that registers it, or torchvision. reductions: of H and W, one an entry of feature_info
    where it changes. time: what looks across frames once inflated with plan isotropic: "conv" (spatial convolutions),
    "linear" (pointwise layers), "tubes" (the patch embed alone); and "joint", where attention="joint" makes attention
    do so too.
    """

    name: str
    family: str
    parameters: int
    reductions: tuple[int, ...]
    time: tuple[str, ...]

    def to_line(self) -> str:
        """Return the table's line."""
        cells = (self.name, self.family, str(self.parameters), _join(self.reductions), _join(self.time))
        return "\t".join(cells)

    @classmethod
    def from_line(cls, line: str) -> Architecture:
        """Read a table's line."""
        name, family, parameters, reductions, time = line.split("\t")
        return cls(name, family, int(parameters), tuple(map(int, reductions.split())), tuple(time.split()))


@cache
def table() -> dict[str, Architecture]:
    """Return what the table knows, by name; a newer timm may have more names."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [Architecture.from_line(line) for line in lines if line and not line.startswith(("#", "name\t"))]
    return {row.name: row for row in rows}


@cache
def versions() -> str:
    """Return the versions that the table was made with, such as "timm 1.0.31, torchvision 0.29.1"."""
    return TABLE.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(";")[0]


@cache
def counts() -> str:
    """Return how many names were built and run for the table, and how many failed; "" where it does not say."""
    told = TABLE.read_text(encoding="utf-8").partition("\n")[0].split("; ")
    return told[1] if len(told) == 3 else ""


def smallest_of_each_family() -> list[Architecture]:
    """Return the member with the fewest parameters of each timm family, by family."""
    smallest: dict[str, Architecture] = {}
    for row in table().values():
        if row.family != "torchvision" and row.parameters < smallest.get(row.family, row).parameters + 1:
            smallest[row.family] = min(smallest.get(row.family, row), row, key=lambda r: (r.parameters, r.name))
    return [smallest[family] for family in sorted(smallest)]


def _join(values: tuple[object, ...]) -> str:
    return " ".join(map(str, values))
