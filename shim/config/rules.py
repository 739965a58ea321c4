"""What a configuration value may be: small rules, each with the words that say so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_RULE = "katapy.rule"


class Refused(ValueError):
    """The value is not what the rule accepts."""


@dataclass(frozen=True, slots=True)
class Rule(Generic[T]):
    """One kind of value.

    ``accepts`` is the text shown to whoever wrote a wrong value; ``convert`` turns a
    decoded TOML value into the model's type and raises Refused for any other value.
    """

    accepts: str
    convert: Callable[[object], T]


def key(default: T, rule: Rule[T]) -> T:
    """Declare a configuration key: a dataclass field with its default and its rule."""
    declared: T = field(default=default, metadata={_RULE: rule})
    return declared


def rule_of(metadata: Any) -> Rule[Any]:
    """Return the rule that :func:`key` put into a dataclass field's metadata."""
    rule: Rule[Any] = metadata[_RULE]
    return rule


def flag() -> Rule[bool]:
    """Accept true and false."""

    def convert(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise Refused

    return Rule("true or false", convert)


def only(value: bool, why: str) -> Rule[bool]:
    """Accept one of the two flags; ``why`` the other can't be."""

    def convert(given: object) -> bool:
        if given is value:
            return value
        raise Refused

    return Rule(f"{str(value).lower()} ({why})", convert)


def integer(minimum: int, maximum: int, unit: str = "") -> Rule[int]:
    """Accept a whole number in a closed range; ``unit`` is only for the text."""

    def convert(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return value
        raise Refused

    return Rule(
        f"a whole number {f'of {unit} ' if unit else ''}from {minimum} to {maximum}", convert
    )


def number(minimum: float, maximum: float, note: str = "") -> Rule[float]:
    """Accept a whole or fractional number in a closed range; ``note`` is only for the text."""

    def convert(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused
        if math.isfinite(value) and minimum <= value <= maximum:
            return float(value)
        raise Refused

    return Rule(f"a number from {minimum:g} to {maximum:g}{note}", convert)


def choice(*names: str) -> Rule[str]:
    """Accept one of the given strings."""

    def convert(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise Refused

    return Rule("one of " + ", ".join(f'"{name}"' for name in names), convert)


def text() -> Rule[str]:
    """Accept one line of text without control characters."""
    return Rule("one line of text", _line)


def texts() -> Rule[tuple[str, ...]]:
    """Accept a list of non-empty lines of text."""

    def convert(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise Refused
        lines = tuple(_line(item) for item in value)
        if not all(lines):
            raise Refused
        return lines

    return Rule("a list of texts, each one line and not empty", convert)


def patterns() -> Rule[tuple[str, ...]]:
    """Accept a list of regular expressions."""
    lines = texts()

    def convert(value: object) -> tuple[str, ...]:
        found = lines.convert(value)
        try:
            for pattern in found:
                re.compile(pattern)
        except re.error:
            raise Refused from None
        return found

    return Rule("a list of regular expressions", convert)


def path() -> Rule[Path]:
    """Accept an absolute path."""
    return Rule('an absolute path, such as "/var/cache/katapy"', _absolute)


def sector_size() -> Rule[int]:
    """Accept a disk's sector size in bytes, or 0 for the usual one."""

    def convert(value: object) -> int:
        if value == 0 and value is not False:
            return 0
        if isinstance(value, int) and 512 <= value <= 32768 and not value & (value - 1):
            return value
        raise Refused

    return Rule("0, or a power of two from 512 to 32768 (bytes)", convert)


def found_path(how: str) -> Rule[Path | None]:
    """Accept an absolute path, or "" (None) to have it found; ``how`` says where."""

    def convert(value: object) -> Path | None:
        return None if value == "" else _absolute(value)

    return Rule(f'an absolute path, or "" for {how}', convert)


def _line(value: object) -> str:
    if isinstance(value, str) and (value.isprintable() or not value):
        return value
    raise Refused


def _absolute(value: object) -> Path:
    line = _line(value)
    if not line.startswith("/"):
        raise Refused
    return Path(line)
