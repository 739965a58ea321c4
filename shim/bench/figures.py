"""What was measured: samples of katapy and another side by side, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

KATAPY = "katapy"
RUNC = "runc"


@dataclass(slots=True)
class Figure:
    """One line of the benchmark.

    Args:
        key: its name in the JSON.
        title: its name in the table.
        unit: of the samples.
        samples: by runtime, in the order they were taken; a runtime that does not have
            the thing is not in it.
    """

    key: str
    title: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, runtime: str, value: float) -> None:
        """Keep one sample."""
        self.samples.setdefault(runtime, []).append(value)


class Figures:
    """All lines, in the order they were first named."""

    def __init__(self) -> None:
        self._lines: dict[str, Figure] = {}

    def add(self, key: str, title: str, unit: str, runtime: str, value: float) -> None:
        """Keep one sample of the line ``key``."""
        self._lines.setdefault(key, Figure(key, title, unit)).add(runtime, value)

    def lines(self) -> list[Figure]:
        """The lines."""
        return list(self._lines.values())


def as_table(figures: Sequence[Figure], other: str = RUNC) -> str:
    """Medians with the smallest and the largest sample, and katapy's multiple of the other."""
    rows = [("", KATAPY, "min … max", other, "min … max", f"{KATAPY} / {other}")]
    for figure in figures:
        cells = [f"{figure.title} [{figure.unit}]"]
        for runtime in (KATAPY, other):
            samples = figure.samples.get(runtime)
            cells += [_number(median(samples)), _range(samples)] if samples else ["–", ""]
        ratio = _ratio(figure, other)
        cells.append(f"{ratio:.2f}" if ratio is not None else "")
        rows.append(tuple(cells))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def as_document(figures: Sequence[Figure], other: str = RUNC) -> list[Mapping[str, object]]:
    """The same for JSON, with every sample."""
    return [
        {
            "key": figure.key,
            "title": figure.title,
            "unit": figure.unit,
            "ratio": _ratio(figure, other),
            **{
                runtime: {"median": median(samples), "samples": samples}
                for runtime, samples in figure.samples.items()
            },
        }
        for figure in figures
    ]


def _ratio(figure: Figure, other: str) -> float | None:
    ours, theirs = figure.samples.get(KATAPY), figure.samples.get(other)
    if not ours or not theirs or not median(theirs):
        return None
    return median(ours) / median(theirs)


def _range(samples: Sequence[float]) -> str:
    return f"{_number(min(samples))} … {_number(max(samples))}" if len(samples) > 1 else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
