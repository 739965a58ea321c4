"""The guest image behind each VMM: its agent answers over hybrid vsock, jailed as well."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.lib.runtime import image_dir
from tests.integration.standins.conftest import BOOT, Start, Vmm
from tests.support.waiting import eventually
from vmm.image.build import build_image
from vmm.image.store import GuestImage, KernelKind

pytestmark = [pytest.mark.vm, pytest.mark.root]

AGENT_PORT = 1024
USER = 23456


@pytest.fixture(scope="session")
def image() -> GuestImage:
    kind: KernelKind = "tuned" if os.environ.get("KATAPY_TEST_KERNEL") == "tuned" else "debian"
    return build_image(kind, Path(os.environ.get("KATAPY_TEST_IMAGES", image_dir())))


def cmdline(image: GuestImage) -> str:
    return f"root=/dev/vda {image.kernel_args} console=ttyS0 reboot=k panic=1 katapy.channel=vsock"


def until_agent(vmm: Vmm, uds: Path) -> None:
    eventually(lambda: vmm.connect(uds, AGENT_PORT).startswith(b"OK "), "agent", timeout=BOOT)


def start_firecracker(vmm: Vmm, image: GuestImage, files: dict[str, str], uds: str) -> None:
    vmm.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
    source = {"kernel_image_path": files["kernel"], "boot_args": cmdline(image)}
    if image.initrd is not None:
        source["initrd_path"] = files["initrd"]
    vmm.put("/boot-source", source)
    root: dict[str, Any] = {"drive_id": "rootfs", "path_on_host": files["rootfs"]}
    vmm.put("/drives/rootfs", {**root, "is_root_device": True, "is_read_only": True})
    vmm.put("/vsock", {"guest_cid": 3, "uds_path": uds})
    vmm.put("/actions", {"action_type": "InstanceStart"})


def paths(image: GuestImage) -> dict[str, str]:
    return {name: str(getattr(image, name)) for name in ("kernel", "initrd", "rootfs")}


def test_firecracker_and_its_fault_after_a_pause(start: Start, image: GuestImage) -> None:
    vmm = start.vmm("firecracker", "1.16.1", stdin=False)
    uds = vmm.directory / "v.sock"
    start_firecracker(vmm, image, paths(image), str(uds))
    until_agent(vmm, uds)
    # Nobody listens there: closed without a word.
    assert vmm.connect(uds, 9) == b""
    vmm.patch("/vm", {"state": "Paused"})
    vmm.patch("/vm", {"state": "Resumed"})
    began = time.monotonic()
    assert vmm.connect(uds, AGENT_PORT) == b""
    assert time.monotonic() - began >= 2, "it hangs, it does not refuse"


def test_firecracker_1_17_goes_on_after_a_pause(start: Start, image: GuestImage) -> None:
    vmm = start.vmm("firecracker", "1.17.0", "--enable-pci", stdin=False)
    uds = vmm.directory / "v.sock"
    start_firecracker(vmm, image, paths(image), str(uds))
    until_agent(vmm, uds)
    vmm.patch("/vm", {"state": "Paused"})
    assert vmm.connect(uds, AGENT_PORT) == b""
    vmm.patch("/vm", {"state": "Resumed"})
    until_agent(vmm, uds)


def test_cloud_hypervisor(start: Start, image: GuestImage) -> None:
    vmm = start.vmm("cloud-hypervisor", "51.1", stdin=False)
    uds = vmm.directory / "v.sock"
    payload = {"kernel": str(image.kernel), "cmdline": cmdline(image)}
    if image.initrd is not None:
        payload["initramfs"] = str(image.initrd)
    config = {
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 256 << 20},
        "payload": payload,
        "disks": [{"path": str(image.rootfs), "readonly": True, "image_type": "Raw"}],
        "console": {"mode": "Off"},
        "vsock": {"cid": 3, "socket": str(uds)},
    }
    vmm.put("/vm.create", config)
    vmm.put("/vm.boot")
    until_agent(vmm, uds)
    vmm.put("/vm.pause")
    vmm.put("/vm.resume")
    until_agent(vmm, uds)
    vmm.put("/vm.delete")
    assert not uds.exists()


@pytest.mark.parametrize("options", [(), ("--daemonize", "--new-pid-ns")], ids=["plain", "daemon"])
def test_jailed(start: Start, image: GuestImage, options: tuple[str, ...]) -> None:
    directory = start.directory()
    firecracker = start.program("firecracker", directory, "1.14.1")
    jailer = start.program("jailer", directory)
    root = directory / "base" / firecracker.path.name / "pod-1" / "root"
    root.mkdir(parents=True)
    files = {}
    for name, path in paths(image).items():
        if path != "None":
            shutil.copy(path, root / name)
            os.chown(root / name, USER, USER)
            files[name] = f"/{name}"
    arguments = ["--id", "pod-1", "--exec-file", str(firecracker.path), "--uid", str(USER)]
    arguments += ["--gid", str(USER), "--chroot-base-dir", str(directory / "base"), *options]
    argv = [str(jailer.path), *arguments, "--", "--api-sock", "/run/api.sock"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    pid_file, socket = root / f"{firecracker.path.name}.pid", root / "run" / "api.sock"
    eventually(socket.exists, "the jailed API socket", timeout=20)
    pid = int(pid_file.read_text())
    try:
        assert (pid == process.pid) == (not options)
        vmm = Vmm(firecracker, process, socket, directory)
        assert vmm.get("/")["id"] == "pod-1"
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n" in status
        assert "CapEff:\t0000000000000000\n" in status
        assert not Path(f"/proc/{pid}/root/home").exists()
        start_firecracker(vmm, image, files, "/run/v.sock")
        until_agent(vmm, root / "run" / "v.sock")
        # A jail is used once.
        again = subprocess.run(argv, capture_output=True, check=False, timeout=30)
        assert again.returncode == 1
    finally:
        os.kill(pid, signal.SIGKILL)
        process.wait(10)
    eventually(lambda: not _processes_of(USER), "the jail's processes end", timeout=10)


def _processes_of(uid: int) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nUid:\t{uid}\t" in text and "\nState:\tZ" not in text:
            found.append(text.splitlines()[0])
    return found
