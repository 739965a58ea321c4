"""JSON by the C parts of the json package alone.

The package itself pulls in re and enum, 60 to 100 ms under emulation, before the
first container can start. Its C scanner and string quoting do all the work anyway.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Settings:
    """What the scanner asks of its decoder: JSON without the extensions."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012

    @staticmethod
    def parse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")


_scan = make_scanner(_Settings)  # type: ignore[arg-type]
_SPACE = " \t\n\r"


def loads(data: bytes | str) -> Any:
    """Parse one JSON document.

    Raises:
        ValueError: it is malformed; the text says where.
    """
    text = (data if isinstance(data, str) else bytes(data).decode()).strip(_SPACE)
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"not JSON at character {stop.value}") from None
    except RecursionError:
        raise ValueError("JSON nests too deep") from None
    except SystemError:
        # The scanner raises json.JSONDecodeError, if that is loaded; let it say what is wrong.
        import json

        return json.loads(text)
    if end != len(text):
        raise ValueError(f"text after the JSON document at character {end}")
    return value


def dumps(value: Any) -> str:
    """Write a value made of dict, list, tuple, str, int, float, bool and None as JSON.

    Raises:
        TypeError: the value holds something else.
    """
    parts: list[str] = []
    _dump(value, parts.append)
    return "".join(parts)


def _dump(value: Any, put: Any) -> None:
    if isinstance(value, str):
        put(encode_basestring_ascii(value))
    elif value is None:
        put("null")
    elif value is True:
        put("true")
    elif value is False:
        put("false")
    elif isinstance(value, (int, float)):
        put(repr(value))
    elif isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            put(separator)
            put(encode_basestring_ascii(key))
            put(":")
            _dump(item, put)
            separator = ","
        put("}" if separator == "," else "{}")
    elif isinstance(value, (list, tuple)):
        separator = "["
        for item in value:
            put(separator)
            _dump(item, put)
            separator = ","
        put("]" if separator == "," else "[]")
    else:
        raise TypeError(f"{type(value).__name__} has no JSON form")
