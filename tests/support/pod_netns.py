"""Network namespaces for a test: a pod's, and the world at the other end of its links."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shim.net.netlink import in_netns

POD_MAC = "02:00:00:00:02:02"
TIMEOUT = 30.0


class Netns:
    """A named network namespace (ip-netns(8))."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"

    def ip(self, *words: str) -> str:
        """Run ip in the namespace."""
        return self.run("ip", *words)

    def run(self, *argv: str) -> str:
        """Run a program in the namespace, with the namespace's own /sys."""
        return call("ip", "netns", "exec", self.name, *argv)

    def show(self, *words: str) -> Any:
        """What ip shows, decoded."""
        return json.loads(self.ip("-j", *words) or "[]")

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in the namespace."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], **options)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket that is in the namespace, whoever uses it."""
        made = in_netns(self.path, lambda: socket.socket(family, kind))
        made.settimeout(TIMEOUT)
        return made

    def links(self) -> set[str]:
        """The names of its links."""
        return {row["ifname"] for row in self.show("link")}


def call(*argv: str) -> str:
    """Run a command of the host and return its output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@contextmanager
def new_netns(name: str) -> Iterator[Netns]:
    """A namespace with its loopback up, gone at the end."""
    call("ip", "netns", "add", name)
    try:
        netns = Netns(name)
        # Addresses of either end are to be usable at once.
        for key in ("default", "all"):
            netns.run("sysctl", "-q", "-w", f"net.ipv6.conf.{key}.accept_dad=0")
        netns.ip("link", "set", "lo", "up")
        yield netns
    finally:
        call("ip", "netns", "del", name)


def join_by_veth(
    pod: Netns, world: Netns, *, link: str = "eth0", mac: str = POD_MAC, mtu: int = 1500
) -> None:
    """Connect a pod to the world by a veth pair, with addresses of either family.

    The pod is 192.0.2.2 and 2001:db8::2, the world .1 and ::1 and the pod's gateway.
    """
    peer = f"w{link}"
    pod.ip("link", "add", link, "mtu", str(mtu), "address", mac,
           "type", "veth", "peer", "name", peer, "mtu", str(mtu), "netns", world.name)  # fmt: skip
    for netns, name, host in ((pod, link, 2), (world, peer, 1)):
        netns.ip("addr", "add", f"192.0.2.{host}/24", "dev", name)
        netns.ip("addr", "add", f"2001:db8::{host}/64", "dev", name, "nodad")
        netns.ip("link", "set", name, "up")
    pod.ip("route", "add", "default", "via", "192.0.2.1")
    pod.ip("route", "add", "default", "via", "2001:db8::1")
