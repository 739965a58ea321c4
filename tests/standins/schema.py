"""Check request bodies against the tables in ``schemas/``, one per VMM version.

A table maps type names to their fields. A field is written ``string``, ``boolean``,
``integer``, ``number``, ``any``, ``[X]`` for a list, ``{X}`` for an object of any keys,
``@Name`` for another type, ``a|b`` for an enumeration; ``!`` at the end: it must be there;
``N..M`` after ``integer``: its range, either end may be missing.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parent / "schemas"

Types = dict[str, dict[str, str]]


class Invalid(Exception):
    """A body that its type does not allow."""


@lru_cache(maxsize=8)
def load(vmm: str, version: str) -> Types:
    """Return the table of one version, such as ``firecracker``, ``1.16.1``."""
    types: Types = json.loads((SCHEMAS / f"{vmm}-{version}.json").read_text())
    return types


def versions(vmm: str) -> list[str]:
    """Return the versions there are tables for."""
    return sorted(p.stem.removeprefix(f"{vmm}-") for p in SCHEMAS.glob(f"{vmm}-*.json"))


def check(types: Types, name: str, value: Any, *, unknown: str) -> Any:
    """Check a decoded body and return it, as the VMM sees it.

    Args:
        types: the version's table.
        name: the body's type.
        value: decoded JSON.
        unknown: what happens to fields the version does not know: ``refuse`` or ``drop``.

    Raises:
        Invalid: with serde's kind of words.
    """
    fields = types[name]
    if not isinstance(value, dict):
        raise Invalid(f"invalid type: {_kind(value)}, expected struct {name}")
    strange = [key for key in value if key not in fields]
    if strange and unknown == "refuse":
        known = ", ".join(f"`{field}`" for field in fields)
        raise Invalid(f"unknown field `{strange[0]}`, expected one of {known}")
    result = {}
    for field, kind in fields.items():
        required = kind.endswith("!")
        if value.get(field) is None:  # an optional field may be null as well
            if required:
                raise Invalid(
                    f"missing field `{field}`"
                    if field not in value
                    else f"invalid type: null, expected {field}"
                )
            continue
        try:
            result[field] = _value(types, kind.rstrip("!"), value[field], unknown)
        except Invalid as error:
            raise Invalid(f"{field}: {error}") from None
    return result


def _value(types: Types, kind: str, value: Any, unknown: str) -> Any:
    if kind == "any":
        return value
    if kind.startswith("@"):
        return check(types, kind[1:], value, unknown=unknown)
    if kind.startswith("["):
        if not isinstance(value, list):
            raise Invalid(f"invalid type: {_kind(value)}, expected a sequence")
        return [_value(types, kind[1:-1], item, unknown) for item in value]
    if kind.startswith("{"):
        if not isinstance(value, dict):
            raise Invalid(f"invalid type: {_kind(value)}, expected a map")
        return {key: _value(types, kind[1:-1], item, unknown) for key, item in value.items()}
    word, _, limits = kind.partition(" ")
    if word == "integer":
        return _integer(value, limits)
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "boolean": (bool,),
        "number": (int, float),
    }
    expected = kinds.get(word)
    if expected is None:
        choices = kind.split("|")
        if value not in choices:
            names = ", ".join(f"`{choice}`" for choice in choices)
            raise Invalid(f"unknown variant `{value}`, expected one of {names}")
        return value
    if not isinstance(value, expected) or (word == "number" and isinstance(value, bool)):
        raise Invalid(f"invalid type: {_kind(value)}, expected a {word}")
    return value


def _integer(value: Any, limits: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Invalid(f"invalid type: {_kind(value)}, expected an integer")
    low, _, high = limits.partition("..")
    if (low and value < int(low)) or (high and value > int(high)):
        raise Invalid(f"invalid value: integer `{value}`, expected {limits}")
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f'string "{value}"'
        case list():
            return "sequence"
        case _:
            return "map"
