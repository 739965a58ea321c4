"""Prometheus's text format, version 0.0.4: figures to text, text to figures. Pure.

Source: Prometheus documentation, "Exposition formats".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:")
_LATER = _FIRST | frozenset("0123456789")
_KINDS = ("counter", "gauge", "histogram", "summary", "untyped")
# A histogram's or summary's samples are named after it and end in one of these.
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


class ExpositionError(ValueError):
    """A text is not in the format; names the line."""


Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure.

    Args:
        name: the family's, or with the ending of a histogram's part.
        labels: pairs of name and value, in order.
        value: the figure.
        timestamp: ms since the epoch, None for now.
    """

    name: str
    labels: Labels
    value: float
    timestamp: int | None = None

    @property
    def key(self) -> tuple[str, *Labels]:
        """What tells it from the others."""
        return (self.name, *self.labels)


@dataclass(slots=True)
class Family:
    """Figures of one name.

    Args:
        name: the name.
        kind: ``counter``, ``gauge``, ``histogram``, ``summary`` or ``untyped``.
        help: a sentence about it.
        samples: the figures.
    """

    name: str
    kind: str = "untyped"
    help: str = ""
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, labels: Mapping[str, str] | None = None, part: str = "") -> None:
        """Take one more figure in; ``part`` is the ending of its name."""
        pairs = tuple((labels or {}).items())
        self.samples.append(Sample(self.name + part, pairs, value))


def gauge(
    name: str, about: str, values: Mapping[str, float] | float, label: str = "item"
) -> Family:
    """Make a family of one figure, or of one for each value of a label."""
    family = Family(name, "gauge", about)
    if isinstance(values, Mapping):
        for key, value in values.items():
            family.add(value, {label: key})
    else:
        family.add(values)
    return family


def render(families: Iterable[Family]) -> str:
    """Write families as text; those without figures are left out.

    Raises:
        ValueError: a name can't stand in the format.
    """
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        _check_name(family.name)
        if family.help:
            lines.append(f"# HELP {family.name} {_escape(family.help)}")
        if family.kind != "untyped":
            lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_line(sample) for sample in family.samples]
    return "".join(f"{line}\n" for line in lines)


def _line(sample: Sample) -> str:
    _check_name(sample.name)
    pairs = []
    for name, value in sample.labels:
        if not _is_name(name) or ":" in name:
            raise ValueError(f"not a label's name: {name!r}")
        pairs.append(f'{name}="{_escape_value(value)}"')
    labels = f"{{{','.join(pairs)}}}" if pairs else ""
    end = "" if sample.timestamp is None else f" {sample.timestamp}"
    return f"{sample.name}{labels} {_number(sample.value)}{end}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_value(text: str) -> str:
    return _escape(text).replace('"', '\\"')


def _is_name(name: str) -> bool:
    return bool(name) and name[0] in _FIRST and _LATER.issuperset(name)


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise ValueError(f"not a metric's name: {name!r}")


def parse(text: str) -> list[Family]:
    """Read families from text, in its order.

    Raises:
        ExpositionError: it is malformed.
    """
    families: dict[str, Family] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            _take(families, line.strip(" \t\r"))
        except (ValueError, IndexError) as error:
            raise ExpositionError(f"line {number}: {error}: {line[:80]!r}") from None
    return [family for family in families.values() if family.samples]


def _take(families: dict[str, Family], line: str) -> None:
    if not line:
        return
    if line.startswith("#"):
        words = line.split(None, 3)
        if len(words) < 3 or words[0] != "#" or words[1] not in ("HELP", "TYPE"):
            return  # a comment
        _check_name(words[2])
        family = families.setdefault(words[2], Family(words[2]))
        rest = words[3] if len(words) > 3 else ""
        if words[1] == "HELP":
            family.help = _unescape(rest)
        elif rest in _KINDS:
            family.kind = rest
        else:
            raise ValueError("not a kind")
        return
    sample = _sample(line)
    name = _family_of(sample.name, families)
    families.setdefault(name, Family(name)).samples.append(sample)


def _family_of(name: str, families: Mapping[str, Family]) -> str:
    if name in families:
        return name
    for kind, endings in _PARTS.items():
        for ending in endings:
            base = name.removesuffix(ending)
            if base != name and base in families and families[base].kind == kind:
                return base
    return name


def _sample(line: str) -> Sample:
    end = next((at for at, char in enumerate(line) if char in "{ \t"), len(line))
    name, rest = line[:end], line[end:].lstrip(" \t")
    _check_name(name)
    labels: list[tuple[str, str]] = []
    if rest.startswith("{"):
        rest = _labels(rest[1:], labels)
    words = rest.split()
    if not 1 <= len(words) <= 2:
        raise ValueError("not a figure")
    return Sample(name, tuple(labels), _value(words[0]), int(words[1]) if words[1:] else None)


def _labels(rest: str, labels: list[tuple[str, str]]) -> str:
    """Take labels off a text; return what follows the closing brace."""
    rest = rest.lstrip(" \t")
    while not rest.startswith("}"):
        name, equals, rest = rest.partition("=")
        name, rest = name.strip(" \t"), rest.lstrip(" \t")
        if not equals or not _is_name(name) or ":" in name or not rest.startswith('"'):
            raise ValueError("not a label")
        end = 1
        while rest[end] != '"':
            end += 2 if rest[end] == "\\" else 1
        labels.append((name, _unescape(rest[1:end])))
        rest = rest[end + 1 :].lstrip(" \t")
        if rest.startswith(","):
            rest = rest[1:].lstrip(" \t")
        elif not rest.startswith("}"):
            raise ValueError("no end of the labels")
    return rest[1:]


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    parts, rest = [], iter(text)
    for char in rest:
        if char != "\\":
            parts.append(char)
            continue
        following = next(rest, "\\")
        parts.append({"n": "\n", '"': '"', "\\": "\\"}.get(following, "\\" + following))
    return "".join(parts)


def _value(word: str) -> float:
    """An integer stays one, so that large counters lose nothing."""
    if word.lstrip("+-").isdecimal() and word.isascii():
        return int(word)
    if "_" in word:  # which float() would take
        raise ValueError("not a number")
    return float(word)


def labelled(family: Family, labels: Mapping[str, str]) -> Family:
    """Return a family whose samples have further labels; those of the same name give way."""
    more = tuple(labels.items())
    samples = [
        replace(s, labels=(*(pair for pair in s.labels if pair[0] not in labels), *more))
        for s in family.samples
    ]
    return Family(family.name, family.kind, family.help, samples)


def renamed(family: Family, name: str) -> Family:
    """Return a family of the same figures under another name."""
    samples = [replace(s, name=name + s.name[len(family.name) :]) for s in family.samples]
    return Family(name, family.kind, family.help, samples)


def merge(many: Iterable[Iterable[Family]]) -> Iterator[Family]:
    """Put families of the same name together: each may be in a text once only.

    A sample that is there twice counts once, and a family of another kind than the first
    of its name is left out.
    """
    merged: dict[str, Family] = {}
    seen: set[tuple[str, *Labels]] = set()
    for families in many:
        for family in families:
            first = merged.setdefault(family.name, Family(family.name, family.kind, family.help))
            if first.kind != family.kind:
                continue
            for sample in family.samples:
                if sample.key not in seen:
                    seen.add(sample.key)
                    first.samples.append(sample)
    yield from merged.values()
