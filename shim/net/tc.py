"""Traffic control: everything that comes in on one link goes out on another.

``matchall`` is the filter for it; kernels without it do the same with a ``u32`` filter
whose one key matches every packet.

Source: tc-mirred(8), tc-u32(8), tc-matchall(8), the kernel's uapi ``pkt_cls.h``,
``tc_act/tc_mirred.h``.
"""

from __future__ import annotations

import errno
import struct

from shim.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    QDISCS,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    RouteSocket,
    attribute,
    traffic_message,
)

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_MATCHALL_ACT = 2
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
_TC_ACT_STOLEN, _EGRESS_REDIRECT = 4, 1
_U32_TERMINAL = 1
_ETH_P_ALL = 3
_PRIORITY = 1
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_LINKLAYER_ETHERNET = 1
_LARGEST_SEGMENT = 65536 + 256
_SLOWEST_TICKS = 100
_QUEUE_DELAY_PART = 20  # of a second: how long a packet may wait for its turn
_UINT32_MAX = (1 << 32) - 1
_RATE = struct.Struct("=BBHhHI")
_MIRRED = struct.Struct("=IIiiiiI")
_U32_SELECTOR = struct.Struct("=BBBxHHhhI")
_U32_KEY = struct.Struct("=IIii")


def redirect(channel: RouteSocket, source: int, target: int) -> str:
    """Send what comes in on a link out on another; the ingress qdisc must be there.

    Args:
        channel: a netlink socket of the links' namespace.
        source, target: the links' numbers.

    Returns:
        The kind of filter that does it.

    Raises:
        OSError: the kernel has neither filter, or no ``mirred`` action.
    """
    try:
        _add_filter(channel, source, "matchall", attribute(_TCA_MATCHALL_ACT, _mirred(target)))
        return "matchall"
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise
    selector = _U32_SELECTOR.pack(_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _U32_KEY.pack(0, 0, 0, 0)
    options = attribute(_TCA_U32_SEL, selector) + attribute(_TCA_U32_ACT, _mirred(target))
    _add_filter(channel, source, "u32", options)
    return "u32"


def add_ingress(channel: RouteSocket, index: int) -> None:
    """Give a link an ingress qdisc.

    Raises:
        FileExistsError: it has one already, or another kind of it.
        OSError: the kernel refuses.
    """
    _add_qdisc(channel, index, "ingress", "ingress", b"")


def limit_rate(channel: RouteSocket, index: int, bits_per_second: int) -> None:
    """Let no more than a rate out of a link, by a token bucket.

    Source: tc-tbf(8), ``struct tc_tbf_qopt``.

    Raises:
        FileExistsError: the link has a root qdisc of somebody's already.
        OSError: the kernel has no ``tbf``.
    """
    rate = max(1, bits_per_second // 8)
    # Enough for one full-sized segment, and for what comes between two ticks of a slow clock.
    burst = max(_LARGEST_SEGMENT, rate // _SLOWEST_TICKS)
    limit = burst + rate // _QUEUE_DELAY_PART
    short_rate = min(rate, _UINT32_MAX)
    parameters = _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, short_rate) + _RATE.pack(*[0] * 6)
    parameters += struct.pack("=III", min(limit, _UINT32_MAX), 0, 0)
    options = attribute(_TCA_TBF_PARMS, parameters)
    options += attribute(_TCA_TBF_BURST, struct.pack("=I", min(burst, _UINT32_MAX)))
    if rate > _UINT32_MAX:
        options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate))
    _add_qdisc(channel, index, "root", "tbf", options)


def _add_qdisc(channel: RouteSocket, index: int, where: str, kind: str, options: bytes) -> None:
    body = traffic_message(index, *QDISCS[where])
    body += attribute(_TCA_KIND, kind.encode() + b"\0") + attribute(_TCA_OPTIONS, options)
    channel.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def _add_filter(channel: RouteSocket, index: int, kind: str, options: bytes) -> None:
    protocol = int.from_bytes(struct.pack(">H", _ETH_P_ALL), "little" if _LITTLE else "big")
    body = traffic_message(index, QDISCS["ingress"][1], 0, _PRIORITY << 16 | protocol)
    body += attribute(_TCA_KIND, kind.encode() + b"\0") + attribute(_TCA_OPTIONS, options)
    channel.request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body)


def _mirred(target: int) -> bytes:
    """Encode the one action: redirect to a link's way out."""
    parameters = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = attribute(_TCA_ACT_KIND, b"mirred\0")
    action += attribute(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, parameters))
    return attribute(1, action)


_LITTLE = struct.pack("=H", 1) == b"\1\0"
