"""Firecracker's dialect, states and devices, on each version that differs."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.integration.standins.conftest import BOOT, Guest, Start, Vmm
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root]

VERSIONS = ("1.12.1", "1.14.1", "1.16.1")


def fc(start: Start, version: str = "1.16.1", *options: str, stdin: bool = True) -> Vmm:
    return start.vmm("firecracker", version, *options, stdin=stdin)


def fault(vmm: Vmm, method: str, path: str, body: object = None) -> str:
    answer = vmm.request(method, path, body)
    assert answer.status_code == 400
    message: str = answer.json()["fault_message"]
    return message


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"first disk")
        file.truncate(4 << 20)
    return path


def configure(vmm: Vmm, guest: Guest, disks: dict[str, tuple[Path, bool]]) -> None:
    vmm.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 192})
    vmm.put(
        "/boot-source",
        {
            "kernel_image_path": str(guest.kernel),
            "initrd_path": str(guest.initrd),
            "boot_args": "console=ttyS0 quiet reboot=k panic=1",
        },
    )
    for name, (path, read_only) in disks.items():
        drive = {"drive_id": name, "path_on_host": str(path), "is_root_device": False}
        vmm.put(f"/drives/{name}", {**drive, "is_read_only": read_only})


def boot(vmm: Vmm) -> None:
    vmm.put("/actions", {"action_type": "InstanceStart"})
    vmm.wait_output(b"guest is up", BOOT)


# -- without a guest ---------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_says_its_version(start: Start, version: str) -> None:
    vmm = fc(start, version)
    info = vmm.get("/")
    assert info["state"] == "Not started"
    assert info["app_name"] == "Firecracker"
    assert vmm.get("/version") == {"firecracker_version": info["vmm_version"]}
    if not vmm.program.real:
        assert info["vmm_version"] == version


@pytest.mark.parametrize(
    ("version", "path", "body", "accepted"),
    [
        ("1.12.1", "/balloon", {"free_page_reporting": True}, False),
        ("1.14.1", "/balloon", {"free_page_reporting": True}, True),
        ("1.12.1", "/serial", {}, False),
        ("1.14.1", "/serial", {}, True),
        ("1.12.1", "/hotplug/memory", {"total_size_mib": 256}, False),
        ("1.14.1", "/hotplug/memory", {"total_size_mib": 256}, True),
    ],
)
def test_newer_fields_and_paths_are_refused(
    start: Start, version: str, path: str, body: dict[str, object], accepted: bool
) -> None:
    vmm = fc(start, version)
    if path == "/balloon":
        body = {"amount_mib": 0, "deflate_on_oom": True, **body}
    assert vmm.request("PUT", path, body).status_code == (204 if accepted else 400)


def test_bodies_are_checked(start: Start, disk: Path) -> None:
    vmm = fc(start)
    assert "unknown field `nope`" in fault(
        vmm, "PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "nope": 1}
    )
    assert "mem_size_mib" in fault(vmm, "PUT", "/machine-config", {"vcpu_count": 1})
    fault(vmm, "PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128})
    fault(vmm, "PUT", "/machine-config", {"vcpu_count": "1", "mem_size_mib": 128})
    fault(vmm, "PUT", "/machine-config", b"{")
    drive = {"drive_id": "a", "path_on_host": str(disk), "is_root_device": False}
    assert "does not match" in fault(vmm, "PUT", "/drives/b", drive)
    assert "alphanumeric" in fault(vmm, "PUT", "/drives/a-b", {**drive, "drive_id": "a-b"})
    fault(vmm, "PUT", "/drives/a", {**drive, "path_on_host": "/nonexistent"})
    fault(vmm, "PUT", "/drives/a", {**drive, "cache_type": "None"})
    vmm.put("/drives/a", {**drive, "is_root_device": True})
    fault(vmm, "PUT", "/drives/c", {**drive, "drive_id": "c", "is_root_device": True})


def test_methods_and_paths(start: Start) -> None:
    vmm = fc(start)
    assert "Invalid request method and/or path" in fault(vmm, "GET", "/nope")
    assert "Empty PUT" in fault(vmm, "PUT", "/actions")
    fault(vmm, "GET", "/", b"{}")
    for method, path, body in (
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PATCH", "/drives/a", {"drive_id": "a"}),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
    ):
        assert "before starting" in fault(vmm, method, path, body)
    assert "kernel" in fault(vmm, "PUT", "/actions", {"action_type": "InstanceStart"})


def test_deprecated_fields_are_marked(start: Start) -> None:
    vmm = fc(start)
    body = {"guest_cid": 3, "uds_path": str(vmm.directory / "v"), "vsock_id": "x"}
    assert vmm.request("PUT", "/vsock", body).headers["Deprecation"] == "true"
    assert "Deprecation" not in vmm.request("GET", "/").headers


def test_a_vsock_path_must_be_free(start: Start) -> None:
    vmm = fc(start)
    path = vmm.directory / "v"
    path.touch()
    assert "bind" in fault(vmm, "PUT", "/vsock", {"guest_cid": 3, "uds_path": str(path)}).lower()


def raw(vmm: Vmm, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(vmm.socket))
        sock.sendall(data)
        return sock.recv(4096)


def test_http_below_the_api(start: Start) -> None:
    vmm = fc(start)
    assert raw(vmm, b"GET / HTTP/1.1\r\n\r\n").startswith(
        b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    )
    for bad in (
        b"nonsense\r\n",
        b"GET / HTTP/3.0\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 2000 + b"\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        answer = raw(vmm, bad)
        assert answer.startswith(b"HTTP/1.1 400 ")
        # Looks like JSON and is none.
        assert b'{ "error": "' in answer
        assert b"\nAll previous" in answer
    chunked = b"PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    assert raw(vmm, chunked).startswith(b"HTTP/1.1 400 ")


def test_ten_connections(start: Start) -> None:
    vmm = fc(start)
    held = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    try:
        for sock in held:
            sock.connect(str(vmm.socket))
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        assert raw(vmm, b"").startswith(b"HTTP/1.1 503")
    finally:
        for sock in held:
            sock.close()
    eventually(lambda: vmm.request("GET", "/").status_code == 200, "room again", timeout=5)


def test_command_line(start: Start) -> None:
    vmm = fc(start)
    directory = start.directory()
    program = start.program("firecracker", directory)
    run = os.spawnv
    assert run(os.P_WAIT, program.path, ["firecracker", "--nope"]) == 153
    assert run(os.P_WAIT, program.path, ["firecracker", "--api-sock", str(vmm.socket)]) == 1
    if not program.real:
        old = start.program("firecracker", directory / "old", "1.12.1")
        assert run(os.P_WAIT, old.path, ["firecracker", "--enable-pci"]) == 153


def test_sigterm_kills_and_leaves_the_socket(start: Start) -> None:
    vmm = fc(start)
    vmm.process.terminate()
    assert vmm.process.wait(10) == -signal.SIGTERM
    assert vmm.socket.exists()


# -- with a guest ------------------------------------------------------------------------


@pytest.mark.vm
def test_drives_pause_balloon_and_reset(start: Start, shell_guest: Guest, disk: Path) -> None:
    vmm = fc(start, "1.14.1")
    other = disk.with_name("other")
    other.write_bytes(b"other disk".ljust(8 << 20, b"\0"))
    configure(vmm, shell_guest, {"rw": (disk, False), "ro": (disk, True)})
    vmm.put("/balloon", {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 1})
    vmm.put("/entropy", {})
    boot(vmm)
    assert "after starting" in fault(vmm, "PUT", "/entropy", {})
    assert vmm.get("/")["state"] == "Running"
    assert "LNRO0005" in vmm.shell("ls /sys/bus/platform/drivers/virtio-mmio")
    assert vmm.shell("ls /sys/bus/pci/devices 2>/dev/null") == ""
    for name in ("vda", "vdb"):
        assert vmm.shell(f"cat /sys/block/{name}/size") == str((4 << 20) // 512)
        assert vmm.shell(f"head -c 10 /dev/{name}") == "first disk"
    assert vmm.shell("cat /sys/block/vda/ro /sys/block/vdb/ro") == "0\n1"

    for drive, name in (("rw", "vda"), ("ro", "vdb")):
        vmm.patch(f"/drives/{drive}", {"drive_id": drive, "path_on_host": str(other)})
        vmm.shell_until(f"cat /sys/block/{name}/size", lambda s: s == str((8 << 20) // 512))
        vmm.shell("echo 3 > /proc/sys/vm/drop_caches")
        assert vmm.shell(f"head -c 10 /dev/{name}") == "other disk"
    vmm.shell("echo from-guest | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")
    assert other.read_bytes().startswith(b"from-guest")
    fault(vmm, "PATCH", "/drives/rw", {"drive_id": "rw", "path_on_host": "/nonexistent"})
    fault(
        vmm,
        "PUT",
        "/drives/x",
        {"drive_id": "x", "path_on_host": str(disk), "is_root_device": False},
    )

    vmm.patch("/vm", {"state": "Paused"})
    assert vmm.get("/")["state"] == "Paused"
    vmm.patch("/vm", {"state": "Resumed"})
    assert vmm.shell("echo alive") == "alive"

    vmm.patch("/balloon", {"amount_mib": 64})
    eventually(
        lambda: vmm.get("/balloon/statistics")["actual_mib"] == 64, "the guest gave 64 MiB",
        timeout=30,
    )  # fmt: skip
    assert vmm.process.stdin is not None
    vmm.process.stdin.write(b"echo b > /proc/sysrq-trigger\n")
    vmm.process.stdin.flush()
    assert vmm.process.wait(30) == 0


@pytest.mark.vm
def test_pci_hotplug_needs_the_guest_to_look(start: Start, shell_guest: Guest, disk: Path) -> None:
    vmm = fc(start, "1.16.1", "--enable-pci")
    configure(vmm, shell_guest, {"first": (disk, False)})
    boot(vmm)
    functions = "ls /sys/bus/pci/devices"
    before = vmm.shell(functions).split()
    assert "0000:00:01.0" in before
    drive = {"drive_id": "hot", "path_on_host": str(disk), "is_root_device": False}
    vmm.put("/drives/hot", drive)
    fault(vmm, "PUT", "/drives/hot", drive)
    assert vmm.shell(f"sleep 1; {functions}").split() == before
    vmm.shell("echo 1 > /sys/bus/pci/rescan")
    assert vmm.shell(functions).split() == sorted([*before, "0000:00:02.0"])
    vmm.shell_until("head -c 10 /dev/vdb", lambda text: text == "first disk")
    vmm.shell("echo 1 > /sys/bus/pci/devices/0000:00:02.0/remove")
    assert vmm.request("DELETE", "/drives/hot").status_code == 204
    fault(vmm, "DELETE", "/drives/hot")
    vmm.put("/drives/again", {**drive, "drive_id": "again"})
    vmm.shell("echo 1 > /sys/bus/pci/rescan")
    assert "0000:00:02.0" in vmm.shell(functions)


@pytest.mark.vm
def test_memory_grows_and_shrinks(start: Start, shell_guest: Guest) -> None:
    vmm = fc(start, "1.14.1")
    configure(vmm, shell_guest, {})
    vmm.put("/hotplug/memory", {"total_size_mib": 256})
    vmm.put(
        "/boot-source",
        {
            "kernel_image_path": str(shell_guest.kernel),
            "initrd_path": str(shell_guest.initrd),
            "boot_args": "console=ttyS0 quiet memhp_default_state=online_movable",
        },
    )
    boot(vmm)
    fault(vmm, "PATCH", "/hotplug/memory", {"requested_size_mib": 512})
    for size in (128, 0):
        vmm.patch("/hotplug/memory", {"requested_size_mib": size})
        eventually(
            lambda size=size: vmm.get("/hotplug/memory")["plugged_size_mib"] == size,  # type: ignore[misc]
            f"{size} MiB plugged",
            timeout=30,
        )


@pytest.mark.vm
def test_power_off_only_halts(start: Start, shell_guest: Guest) -> None:
    vmm = fc(start)
    configure(vmm, shell_guest, {})
    boot(vmm)
    vmm.shell("echo going; (sleep 0.2; poweroff -f) &")
    eventually(lambda: b"ower down" in vmm.output or _silent(vmm), "the guest is off", timeout=30)
    assert vmm.process.poll() is None


def _silent(vmm: Vmm) -> bool:
    return vmm.get("/")["state"] == "Running" and not vmm.connect(vmm.directory / "none", 1)


@pytest.mark.vm
def test_snapshot(start: Start, shell_guest: Guest, disk: Path) -> None:
    vmm = fc(start)
    configure(vmm, shell_guest, {"rw": (disk, False)})
    boot(vmm)
    vmm.shell("echo kept > /kept")
    state, memory = vmm.directory / "state", vmm.directory / "memory"
    wanted = {"snapshot_path": str(state), "mem_file_path": str(memory)}
    fault(vmm, "PUT", "/snapshot/create", wanted)
    vmm.patch("/vm", {"state": "Paused"})
    vmm.put("/snapshot/create", wanted)
    vmm.process.kill()

    second = fc(start)
    load = {
        "snapshot_path": str(state),
        "mem_backend": {"backend_type": "File", "backend_path": str(memory)},
    }
    fault(second, "PUT", "/snapshot/load", {**load, "mem_file_path": str(memory)})
    second.put("/snapshot/load", {**load, "resume_vm": True})
    assert second.shell("cat /kept") == "kept"
    assert second.get("/")["state"] == "Running"
