"""The service about the packet filter of a pod's guest: call, translate back.

Source: protos/katapy/shim.proto; Kata's agent protocol (GetIPTables, SetIPTables).
"""

from __future__ import annotations

from protos.kata import agent_pb2 as pb
from shim.pod.sandbox import Sandbox
from shim.ttrpc.service import CallContext


class PacketFilterService:
    """Handlers of ``katapy.shim.v1.PacketFilter``.

    Args:
        sandbox: the pod.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def get(
        self, request: pb.GetIPTablesRequest, _context: CallContext
    ) -> pb.GetIPTablesResponse:
        """PacketFilter.Get."""
        data = await self._sandbox.agent.iptables(is_ipv6=request.is_ipv6)
        return pb.GetIPTablesResponse(data=data)

    async def set(
        self, request: pb.SetIPTablesRequest, _context: CallContext
    ) -> pb.SetIPTablesResponse:
        """PacketFilter.Set."""
        data = await self._sandbox.agent.iptables(is_ipv6=request.is_ipv6, rules=request.data)
        return pb.SetIPTablesResponse(data=data)
