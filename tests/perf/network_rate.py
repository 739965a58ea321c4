"""TCP throughput of a guest by each way of connecting it, against a tap of its own.

    python -m tests.perf.network_rate [MEGABYTES]

``direct`` is what a bare QEMU does: the tap is the host's end of the network. The others
reach the same host through a veth pair, as a pod does.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import trio

from shim.net import endpoint
from shim.net.endpoint import Wiring
from shim.net.netlink import RouteSocket, in_netns
from shim.net.scan import scan
from shim.net.tap import open_tap
from tests.integration.vmm import guest
from tests.integration.vmm.guest import GuestShell
from tests.support.pod_netns import POD_MAC, Netns, join_by_veth, new_netns
from vmm.qemu.qemu import QemuHypervisor
from vmm.spec import NetDevice, SerialDevice, VmSpec

ROUNDS = 3
PORT = 7000


def connect(way: str, pod: Netns, world: Netns) -> NetDevice:
    if way == "direct":
        fds = in_netns(world.path, lambda: open_tap("tap0"))
        world.ip("addr", "add", "192.0.2.1/24", "dev", "tap0")
        world.ip("link", "set", "tap0", "up")
        return NetDevice("net", POD_MAC, fds=fds)
    join_by_veth(pod, world)

    def make() -> NetDevice:
        with RouteSocket() as channel:
            (link,) = scan(channel).links
            wiring = Wiring(model=way)  # type: ignore[arg-type]
            return endpoint.connect(channel, link, wiring)

    return in_netns(pod.path, make)


def serve(listener: socket.socket, size: int) -> None:
    """Give each client that many bytes by HTTP, or take what it sends."""
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    block = bytes(1 << 20)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            client.recv(65536)
            client.sendall(head)
            for _ in range(size >> 20):
                client.sendall(block)


def fetch(world: Netns, size: int) -> float:
    """Take a file from the guest's web server; gives MB/s."""
    with world.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect(("192.0.2.2", 80))
        started = time.monotonic()
        sock.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        got = 0
        while data := sock.recv(1 << 20):
            got += len(data)
        assert got >= size, got
        return got / (time.monotonic() - started) / 1e6


async def measure(way: str, size: int) -> tuple[float, float]:
    """Median MB/s to the host and from it."""
    files = guest.build()
    with (
        new_netns(f"ktperf{os.getpid()}p") as pod,
        new_netns(f"ktperf{os.getpid()}w") as world,
        tempfile.TemporaryDirectory(prefix="perf-", dir="/tmp") as folder,
    ):
        device = connect(way, pod, world)
        spec = VmSpec(
            kernel=files.kernel,
            initrd=files.initrd,
            cmdline="quiet",
            runtime_dir=Path(folder),
            devices=(SerialDevice("cmd", guest.COMMAND_PORT), device),
        )
        listener = world.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.settimeout(None)
        async with QemuHypervisor(spec, cache_dir=Path(folder)) as vm:
            await vm.boot()
            async with await vm.dial_agent(60):
                shell = await GuestShell.open(spec.runtime_dir / "cmd.sock")
                await shell.run("ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up")
                listener.bind(("192.0.2.1", PORT))
                listener.listen()
                threading.Thread(target=serve, args=(listener, size), daemon=True).start()
                await shell.run(f"mkdir /www; truncate -s {size} /www/file; httpd -h /www")
                out, into = [], []
                for _ in range(ROUNDS):
                    out.append(await trio.to_thread.run_sync(fetch, world, size))
                    started = time.monotonic()
                    await shell.run(f"wget -q -O /dev/null http://192.0.2.1:{PORT}/")
                    into.append(size / (time.monotonic() - started) / 1e6)
                await shell.aclose()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for fd in device.fds:
            os.close(fd)
        return statistics.median(out), statistics.median(into)


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 64) << 20
    base: tuple[float, float] | None = None
    for way in ("direct", "tcfilter", "macvtap"):
        out, into = trio.run(measure, way, size)
        base = base or (out, into)
        print(
            f"{way:9} guest to host {out:6.1f} MB/s ({out / base[0]:4.0%}), "
            f"host to guest {into:6.1f} MB/s ({into / base[1]:4.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
