"""Cloud Hypervisor's dialect, states, devices and events."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.standins.conftest import BOOT, Guest, Start, Vmm
from tests.standins.taps import open_tap
from tests.support.waiting import eventually
from vmm.virtiofsd import run_virtiofsd

pytestmark = [pytest.mark.root]

VERSIONS = ("46.0", "51.1", "53.0")
MIB = 1 << 20


def ch(start: Start, version: str = "53.0", *options: str, fds: tuple[int, ...] = ()) -> Vmm:
    return start.vmm("cloud-hypervisor", version, *options, fds=fds)


def vm_config(guest: Guest, **more: Any) -> dict[str, Any]:
    return {
        "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
        "memory": {"size": 192 * MIB},
        "payload": {
            "kernel": str(guest.kernel),
            "initramfs": str(guest.initrd),
            "cmdline": "console=ttyS0 quiet panic=1 memhp_default_state=online_movable",
        },
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        **more,
    }


NO_GUEST = Guest(Path("/nonexistent/kernel"), Path("/nonexistent/initrd"))


class Events:
    """Reads an event monitor's stream."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._buffer = b""
        self.seen: list[dict[str, Any]] = []

    def names(self) -> list[str]:
        try:
            while data := os.read(self._reader, 65536):
                self._buffer += data
        except BlockingIOError:
            pass
        *records, self._buffer = self._buffer.split(b"\n\n")
        self.seen += [json.loads(record) for record in records]
        return [f"{event['source']}.{event['event']}" for event in self.seen]

    def wait(self, name: str, timeout: float = 30) -> dict[str, Any]:
        eventually(lambda: name in self.names(), f"event {name}", timeout=timeout)
        return next(e for e in self.seen if f"{e['source']}.{e['event']}" == name)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)


@pytest.fixture
def events() -> Iterator[Events]:
    monitor = Events()
    yield monitor
    monitor.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"first disk")
        file.truncate(4 * MIB)
    return path


# -- without a guest ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "is_json", "missing"),
    [("46.0", False, 500), ("51.1", True, 500), ("53.0", True, 404)],
)
def test_errors_by_version(start: Start, version: str, is_json: bool, missing: int) -> None:
    vmm = ch(start, version)
    assert vmm.get("/vmm.ping")["version"] == f"{version}.0"
    answer = vmm.request("GET", "/vm.info")
    assert answer.status_code == missing
    if is_json:
        assert answer.json()[0] == "Error from API"
    else:
        with pytest.raises(ValueError, match="Expecting"):
            answer.json()
    assert vmm.request("PUT", "/vm.create", b"{").status_code == 400
    assert vmm.request("GET", "/nope").status_code == 404
    assert vmm.request("PATCH", "/vm.resize", {}).status_code == 400
    assert vmm.request("PUT", "/vm.boot", {}).status_code == 400  # a body where none may be
    assert vmm.request("PUT", "/vm.create").status_code == 400


def test_unknown_fields_are_ignored_and_wrong_types_are_not(start: Start) -> None:
    vmm = ch(start)
    config = vm_config(NO_GUEST, nonsense={"a": 1})
    assert (
        vmm.request("PUT", "/vm.create", {**config, "cpus": {"boot_vcpus": "1"}}).status_code == 400
    )
    vmm.put("/vm.create", config)
    assert "nonsense" not in vmm.get("/vm.info")["config"]
    assert vmm.request("PUT", "/vm.create", config).status_code == 500
    vmm.put("/vm.delete")
    vmm.put("/vm.create", config)


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": {"boot_vcpus": 4, "max_vcpus": 2}},
        {"payload": {"cmdline": "quiet"}},
        {"fs": [{"tag": "t", "socket": "/s", "num_queues": 1, "queue_size": 1024}]},
        {"disks": [{"path": "/d", "num_queues": 2}]},
        {"disks": [{"path": "/d", "id": "a"}, {"path": "/e", "id": "a"}]},
        {"net": [{"tap": "t", "num_queues": 1}]},
        {"serial": {"mode": "File"}},
        {"serial": {"mode": "Tty"}, "console": {"mode": "Tty"}},
        {"vsock": {"cid": 2, "socket": "/s"}},
    ],
)
def test_invalid_configurations(start: Start, change: dict[str, Any]) -> None:
    vmm = ch(start)
    assert vmm.request("PUT", "/vm.create", vm_config(NO_GUEST, **change)).status_code >= 400
    assert vmm.request("GET", "/vm.info").status_code == 404


def test_devices_before_boot(start: Start, disk: Path) -> None:
    vmm = ch(start)
    vmm.put("/vm.create", vm_config(NO_GUEST))
    vmm.put("/vm.add-disk", {"path": str(disk), "id": "one"})
    assert vmm.request("PUT", "/vm.add-disk", {"path": str(disk), "id": "one"}).status_code >= 400
    vmm.put("/vm.remove-device", {"id": "one"})
    assert vmm.request("PUT", "/vm.remove-device", {"id": "one"}).status_code >= 400
    assert vmm.request("PUT", "/vm.boot").status_code == 500  # no such kernel
    assert vmm.get("/vm.info")["state"] == "Created"


def test_listening_socket_by_descriptor(start: Start, events: Events) -> None:
    directory = start.directory()
    program = start.program("cloud-hypervisor", directory)
    path = directory / "api"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fds = (listener.fileno(), events.writer)
        argv = [f"--api-socket=fd={fds[0]}", f"--event-monitor=fd={fds[1]}"]
        process = subprocess.Popen([program.path, *argv], pass_fds=fds)
    vmm = Vmm(program, process, path, directory, "/api/v1")
    assert vmm.get("/vmm.ping")["pid"] == process.pid
    events.wait("vmm.starting")
    process.terminate()
    assert process.wait(10) == 0
    events.wait("vmm.shutdown")


def test_end_on_a_signal_removes_the_socket(start: Start) -> None:
    vmm = ch(start)
    vmm.process.send_signal(signal.SIGTERM)
    assert vmm.process.wait(10) == 0
    assert not vmm.socket.exists()


# -- with a guest ------------------------------------------------------------------------


def boot(vmm: Vmm, config: dict[str, Any]) -> None:
    vmm.put("/vm.create", config)
    vmm.put("/vm.boot")
    vmm.wait_output(b"guest is up", BOOT)


def send_with_fds(vmm: Vmm, path: str, body: dict[str, Any], fds: list[int]) -> bytes:
    data = json.dumps(body).encode()
    head = f"PUT /api/v1{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(vmm.socket))
        sock.sendmsg([head.encode() + data], [rights])
        return sock.recv(4096)


@pytest.fixture
def tap() -> Iterator[str]:
    name = "kit-clh"
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap", "vnet_hdr"], check=True, timeout=10)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True, timeout=10)


@pytest.mark.vm
def test_hotplug_resize_and_reboot(
    start: Start, shell_guest: Guest, disk: Path, events: Events, tap: str
) -> None:
    vmm = ch(start, "53.0", f"--event-monitor=fd={events.writer}", fds=(events.writer,))
    memory = {"size": 192 * MIB, "hotplug_size": 256 * MIB, "hotplug_method": "VirtioMem"}
    boot(vmm, vm_config(shell_guest, memory=memory, disks=[{"path": str(disk), "id": "cold"}]))
    events.wait("vm.booted")
    info = vmm.get("/vm.info")
    assert info["state"] == "Running"
    functions = "ls /sys/bus/pci/devices"
    assert info["device_tree"]["_virtio-pci-cold"]["pci_bdf"] in vmm.shell(functions)

    hot = disk.with_name("hot")
    hot.write_bytes(b"hot disk".ljust(2 * MIB, b"\0"))
    device = {"path": str(hot), "id": "hot", "readonly": True, "image_type": "Raw"}
    added = vmm.put("/vm.add-disk", device, status=200)
    address = added["bdf"]
    vmm.shell_until(functions, lambda text: address in text)
    vmm.shell_until("head -c 8 /dev/vdb", lambda text: text == "hot disk")
    vmm.put("/vm.remove-device", {"id": "hot"})
    removed = events.wait("vm.device-removed")
    assert removed["properties"] == {"id": "hot", "bdf": address}
    assert address not in vmm.shell(functions)
    assert vmm.request("PUT", "/vm.remove-device", {"id": "hot"}).status_code >= 400

    fd = open_tap(tap)
    answer = send_with_fds(vmm, "/vm.add-net", {"id": "nic", "mac": "02:00:00:00:00:0a"}, [fd])
    os.close(fd)
    assert answer.startswith(b"HTTP/1.1 200")
    vmm.shell_until("cat /sys/class/net/*/address", lambda text: "02:00:00:00:00:0a" in text)

    total = "grep MemTotal /proc/meminfo | tr -dc 0-9"
    before = int(vmm.shell(total))
    vmm.put("/vm.resize", {"desired_ram": 320 * MIB})
    vmm.shell_until(total, lambda text: int(text) > before + 100 * 1024)
    vmm.put("/vm.resize", {"desired_ram": 192 * MIB})
    vmm.shell_until(total, lambda text: int(text) < before + 20 * 1024)
    assert vmm.request("PUT", "/vm.resize", {"desired_ram": 64 * MIB}).status_code >= 400
    vmm.put("/vm.resize", {"desired_vcpus": 2})
    vmm.shell_until("ls -d /sys/devices/system/cpu/cpu1", lambda text: text.endswith("cpu1"))

    assert vmm.get("/vm.counters")["cold"]["read_bytes"] > 0
    vmm.put("/vm.pause")
    assert vmm.get("/vm.info")["state"] == "Paused"
    vmm.put("/vm.resume")
    assert vmm.shell("echo alive") == "alive"

    assert vmm.process.stdin is not None
    vmm.process.stdin.write(b"echo b > /proc/sysrq-trigger\n")
    vmm.process.stdin.flush()
    events.wait("vm.rebooted")
    vmm.wait_output(b"guest is up", BOOT)
    assert "02:00:00:00:00:0a" in vmm.shell("cat /sys/class/net/*/address")
    vmm.put("/vm.shutdown")
    assert vmm.get("/vm.info")["state"] == "Created"
    vmm.put("/vmm.shutdown", status=200)
    assert vmm.process.wait(10) == 0


@pytest.mark.vm
async def test_shared_directory(start: Start, shell_guest: Guest, rust_virtiofsd: Path) -> None:
    vmm = ch(start)
    shared = vmm.directory / "shared"
    shared.mkdir()
    (shared / "hello").write_text("from the host")
    socket_path = vmm.directory / "fs.sock"
    async with run_virtiofsd(shared, socket_path, binary=rust_virtiofsd):
        device = {"tag": "share", "socket": str(socket_path)}
        memory = {"size": 192 * MIB, "shared": True}
        boot(vmm, vm_config(shell_guest, memory=memory, fs=[device]))
        assert vmm.shell("mount -t virtiofs share /mnt; cat /mnt/hello") == "from the host"
        vmm.put("/vm.delete")


@pytest.mark.vm
def test_power_off_ends_the_process(start: Start, shell_guest: Guest, events: Events) -> None:
    vmm = ch(start, "53.0", f"--event-monitor=fd={events.writer}", fds=(events.writer,))
    boot(vmm, vm_config(shell_guest))
    assert vmm.process.stdin is not None
    vmm.process.stdin.write(b"poweroff -f\n")
    vmm.process.stdin.flush()
    assert vmm.process.wait(30) == 0
    assert "vm.shutdown" in events.names()


@pytest.mark.vm
def test_snapshot(start: Start, shell_guest: Guest) -> None:
    vmm = ch(start)
    boot(vmm, vm_config(shell_guest))
    vmm.shell("echo kept > /kept")
    directory = vmm.directory / "snapshot"
    body = {"destination_url": f"file://{directory}"}
    assert vmm.request("PUT", "/vm.snapshot", body).status_code == 500
    vmm.put("/vm.pause")
    assert vmm.request("PUT", "/vm.snapshot", body).status_code == 500  # no directory
    directory.mkdir()
    vmm.put("/vm.snapshot", body)
    assert {path.name for path in directory.iterdir()} == {
        "config.json", "state.json", "memory-ranges",
    }  # fmt: skip
    vmm.put("/vm.delete")
    vmm.put("/vm.restore", {"source_url": f"file://{directory}"})
    assert vmm.get("/vm.info")["state"] == "Paused"
    vmm.put("/vm.resume")
    assert vmm.shell("cat /kept") == "kept"
