"""Directly attached networks: a file says which cards a pod's VM gets, instead of the scan.

For networks that something other than CNI has made, with no link in a pod's namespace.

Source: kata-containers ``src/runtime/virtcontainers/types/dan.go`` and
``docs/design/direct-attachable-network.md`` for the file's form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from shim.errors import ConfigError, Unimplemented
from shim.net import pci
from shim.net.links import Address, Link, Neighbour, Route
from shim.net.rtnl import IFF_NOARP, NUD_PERMANENT

_FILE_MAX = 1 << 20
_DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class DirectDevice:
    """A network card on something that exists.

    Args:
        link: what the guest's link is to look like; its number counts the file's devices.
        tap: a tap's name in the namespace, or
        socket: where a vhost-user daemon listens, or
        address: a PCI function of the host.
        queues: pairs of queues.
        queue_size: entries of each, of a daemon's; 0 leaves the default.
    """

    link: Link
    tap: str = ""
    socket: Path | None = None
    address: str = ""
    queues: int = 1
    queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DirectNetwork:
    """A pod's directly attached network.

    Args:
        netns: path of the namespace that holds the taps; "" for the spec's own.
        devices: the cards.
    """

    netns: str
    devices: tuple[DirectDevice, ...]


def load_direct_network(folder: Path, sandbox_id: str) -> DirectNetwork | None:
    """Read a pod's file; None when there is none.

    Args:
        folder: directory of the files, each named after its pod.
        sandbox_id: the pod's id.

    Raises:
        ConfigError: it is malformed; the text says where.
        Unimplemented: it asks for a kind of device that there is not.
    """
    path = folder / f"{sandbox_id}.json"
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        return parse_direct_network(json.loads(data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no directly attached network: {error!r}") from error
    except Unimplemented as error:
        raise Unimplemented(f"{path}: {error}") from error


def parse_direct_network(document: Any) -> DirectNetwork:
    """Take the decoded file apart.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is malformed.
        Unimplemented: it asks for a kind of device that there is not.
    """
    devices = [_device(entry, number) for number, entry in enumerate(document["devices"], 1)]
    return DirectNetwork(str(document.get("netns") or ""), tuple(devices))


def _device(entry: dict[str, Any], number: int) -> DirectDevice:
    device = entry["device"]
    queues, size = int(device.get("queue_num") or 1), int(device.get("queue_size") or 0)
    link = _link(entry, number)
    match device["type"]:
        case "host-tap":
            return DirectDevice(link, tap=str(device["tap_name"]), queues=queues)
        case "vhost-user":
            return DirectDevice(
                link, socket=Path(str(device["path"])), queues=queues, queue_size=size
            )
        case "vfio":
            return DirectDevice(link, address=pci.checked(str(device["pci_device_id"])))
    raise Unimplemented(
        f"a device of type {device['type']!r}: there are host-tap, vhost-user and vfio"
    )


def _link(entry: dict[str, Any], number: int) -> Link:
    info = entry.get("network_info") or {}
    interface = info.get("interface") or {}
    return Link(
        index=number,
        name=str(entry["name"]),
        kind=str(interface.get("ntype") or "tuntap"),
        mac=str(entry["guest_mac"]).lower(),
        mtu=int(interface.get("mtu") or _DEFAULT_MTU),
        no_arp=bool(int(interface.get("flags") or 0) & IFF_NOARP),
        addresses=tuple(_address(text) for text in interface.get("ip_addresses") or ()),
        routes=tuple(_route(route) for route in info.get("routes") or ()),
        neighbours=tuple(_neighbour(found) for found in info.get("neighbors") or ()),
    )


def _address(text: str) -> Address:
    parsed = ip_interface(text)
    return Address(str(parsed.ip), parsed.network.prefixlen)


def _route(entry: dict[str, Any]) -> Route:
    dest, gateway = str(entry.get("dest") or ""), str(entry.get("gateway") or "")
    network = ip_network(dest, strict=False) if dest else None
    return Route(
        # Every other form of "everywhere" is the default route.
        dest=str(network) if network is not None and network.prefixlen else "",
        is_ipv6=":" in (dest or gateway),
        gateway=gateway,
        source=str(entry.get("source") or ""),
        scope=int(entry.get("scope") or 0),
        flags=int(entry.get("flags") or 0),
        mtu=int(entry.get("mtu") or 0),
    )


def _neighbour(entry: dict[str, Any]) -> Neighbour:
    state = int(entry.get("state") or NUD_PERMANENT)
    address = str(ip_interface(str(entry["ip_address"])).ip)
    return Neighbour(address, str(entry["hardware_addr"]), state, int(entry.get("flags") or 0))
