"""What trio and protobuf import but no shim uses, left out of its memory.

TLS brings OpenSSL with it, and protobuf all of the pure Python implementation that its C
module stands in for: 4 of 25 MiB in each shim, and a tenth of the time to its first answer.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

LEFT_OUT = (
    "trio._dtls",
    "trio._highlevel_ssl_helpers",
    "trio._ssl",
    "idna",  # for getaddrinfo
    "google.protobuf.internal.python_message",
)


class UnusedModule(ModuleType):
    """Has a class for whatever is imported from it, which can't be instantiated."""

    def __getattr__(self, name: str) -> Any:
        """A new attribute; dunder names are as absent as they look."""
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_args: object, **_keywords: object) -> NoReturn:
            raise NotImplementedError(f"{self.__name__} is left out of the shim")

        value = type(name, (), {"__new__": refuse})
        setattr(self, name, value)
        return value


def leave_out() -> None:
    """Have trio and protobuf get placeholders; called before either is imported."""
    c_protobuf = _is_installed("google._upb._message")
    for name in LEFT_OUT:
        if c_protobuf or not name.startswith("google."):
            sys.modules.setdefault(name, UnusedModule(name))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package is
        return False
