"""The service about a pod's direct-assigned volumes: translate, call, translate back.

Source: protos/katapy/shim.proto.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from protos.kata.csi_pb2 import VolumeStatsResponse
from protos.katapy.shim_pb2 import ResizeRequest, VolumeRequest
from shim.pod.direct_volumes import DirectVolumes
from shim.ttrpc.service import CallContext


class VolumeService:
    """Handlers of ``katapy.shim.v1.Volumes``.

    Args:
        volumes: those the pod uses.
    """

    def __init__(self, volumes: DirectVolumes) -> None:
        self._volumes = volumes

    async def stats(self, request: VolumeRequest, _context: CallContext) -> VolumeStatsResponse:
        """Volumes.Stats."""
        return await self._volumes.stats(request.volume_path)

    async def resize(self, request: ResizeRequest, _context: CallContext) -> Empty:
        """Volumes.Resize."""
        await self._volumes.resize(request.volume_path, request.size)
        return Empty()
