"""Sizes of a volume as JSON, in the form that Kata's users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protos.kata import csi_pb2


def volume_stats(reply: csi_pb2.VolumeStatsResponse) -> dict[str, Any]:
    """Return CSI's NodeGetVolumeStats of an agent's answer."""
    usage = [
        {"available": u.available, "total": u.total, "used": u.used, "unit": u.unit}
        for u in reply.usage
    ]
    condition = reply.volume_condition
    state = {"abnormal": condition.abnormal, "message": condition.message}
    return {"usage": usage, "volume_condition": state}
