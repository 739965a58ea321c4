"""The RPCs about the guest's packet filter, for service meshes.

Source: iptables-save(8), iptables-restore(8); Kata's agent semantics.
"""

from __future__ import annotations

from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError

from .children import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from protos.lite import Message

    from .children import Children

# Debian's names of the same program by what it speaks to the kernel, then the usual one.
_VARIANTS = ("-nft", "-legacy", "")


class IpTables:
    """The guest's packet filter rules."""

    __slots__ = ("_children",)

    def __init__(self, children: Children) -> None:
        self._children = children

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of grpc.AgentService in this class."""
        return {"GetIPTables": self.get, "SetIPTables": self.set}

    async def get(self, request: Message) -> Mapping[str, Any]:
        """GetIPTables: the rules of all tables, as iptables-save writes them."""
        return {"data": await self._run([_program(request["is_ipv6"], "-save")])}

    async def set(self, request: Message) -> Mapping[str, Any]:
        """SetIPTables: replace the tables that are in the text; gives what there is then."""
        argv = [_program(request["is_ipv6"], "-restore"), "--wait"]
        await self._run(argv, request["data"])
        return {"data": await self._run([_program(request["is_ipv6"], "-save")])}

    async def _run(self, argv: list[str], data: bytes = b"") -> bytes:
        code, output = await self._children.output(argv, data)
        if code:
            text = output.decode(errors="replace").strip()
            # Of restore only the text that it was given is wrong.
            kind = status.INVALID_ARGUMENT if data else status.INTERNAL
            raise TtrpcError(kind, f"{argv[0]}: exit code {code}: {text}")
        return output


def _program(is_ipv6: bool, verb: str) -> str:
    base = "ip6tables" if is_ipv6 else "iptables"
    for variant in _VARIANTS:
        try:
            return find_program(f"{base}{variant}{verb}")
        except FileNotFoundError:
            continue
    raise TtrpcError(status.UNIMPLEMENTED, f"this guest image has no {base}{verb}")
