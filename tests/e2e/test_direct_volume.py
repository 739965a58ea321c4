"""Direct-assigned volumes: described as a CSI driver does, mounted by the guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ctr import Ctr
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]
MIB = 1 << 20


def katapy(*words: str | Path, code: int = 0) -> str:
    """The command's output; it has to end with ``code``."""
    command = [sys.executable, "-m", "shim.cli.main", "direct-volume", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image with nothing on it."""
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 32 * MIB)
    return path


@pytest.fixture
def volume(own_run_directories: None, tmp_path: Path, disk: Path) -> Iterator[Path]:
    """A volume path with the image as its disk and an fsGroup."""
    path = tmp_path / "volume"
    info = {
        "volume-type": "block",
        "device": str(disk),
        "fstype": "ext4",
        "options": ["noatime"],
        "metadata": {"fsGroup": "2000", "createFilesystem": "true"},
    }
    path.mkdir()
    katapy("add", "--volume-path", path, "--mount-info", json.dumps(info))
    yield path
    katapy("remove", "--volume-path", path)


def test_direct_volume(ctr: Ctr, volume: Path, disk: Path) -> None:
    mount = ("--mount", f"type=bind,src={volume},dst=/v,options=rbind:rw")
    name = ctr.start("sh", "-c", "echo data >/v/f; sleep 1000", options=mount)
    script = "stat -c '%a %g' /v; grep ' /v ' /proc/mounts"
    mode, mounted = ctr.exec(name, "sh", "-c", script).text.splitlines()
    assert mode == "2775 2000"
    assert " ext4 " in mounted
    assert "noatime" in mounted
    usage = json.loads(katapy("stats", "--volume-path", volume))["usage"]
    assert 20 * MIB < usage[0]["total"] < 32 * MIB
    assert usage[0]["unit"] == 1
    katapy("resize", "--volume-path", volume, "--size", str(64 * MIB))
    usage = json.loads(katapy("stats", "--volume-path", volume))["usage"]
    assert 50 * MIB < usage[0]["total"] < 64 * MIB
    assert disk.stat().st_size == 64 * MIB
    refusal = katapy("resize", "--volume-path", volume, "--size", str(MIB), code=1)
    assert "can't shrink" in refusal
    ctr.remove(name)
    assert "no sandbox uses" in katapy("stats", "--volume-path", volume, code=1)
    # Everything is on the disk, and the next pod finds it.
    done = subprocess.run(
        ["/sbin/debugfs", "-R", "cat f", disk], capture_output=True, text=True, check=True
    )
    assert done.stdout == "data\n"
    assert ctr.run("cat", "/v/f", options=mount).text == "data"


def test_a_missing_device_is_said(ctr: Ctr, volume: Path, disk: Path) -> None:
    disk.unlink()
    mount = ("--mount", f"type=bind,src={volume},dst=/v,options=rbind:rw")
    output = ctr.run("true", options=mount)
    assert output.code != 0
    assert f"{disk}: No such file" in output.error


@pytest.fixture
def storage_daemon(disk: Path) -> Iterator[Path]:
    """A socket at which another process serves the disk over vhost-user, as SPDK does."""
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-m", "0", disk], check=True)
    socket = disk.with_name("vhost.sock")
    node = f"driver=file,node-name=d,filename={disk}"
    export = "type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2"
    address = f"addr.type=unix,addr.path={socket}"
    command = ["qemu-storage-daemon", "--blockdev", node, "--export", f"{export},{address}"]
    with subprocess.Popen(command) as process:
        eventually(socket.exists, "the daemon's socket", timeout=20)
        yield socket
        process.terminate()


def test_a_disk_that_a_daemon_serves(
    ctr: Ctr,
    own_run_directories: None,
    configured: Callable[[str], tuple[str, str]],
    tmp_path: Path,
    storage_daemon: Path,
    disk: Path,
) -> None:
    path = tmp_path / "volume"
    info = {
        "volume-type": "spdkvol",
        "device": f"spdk://{storage_daemon}",
        "fstype": "ext4",
        "metadata": {"num_queues": "2", "fsGroup": "2000"},
    }
    katapy("add", "--volume-path", path, "--mount-info", json.dumps(info))
    try:
        # The type that Kata's runtime-rs wants is as good as a bind mount.
        mount = f"type=spdkvol,src={path},dst=/v,options=rbind:rw"
        options = [*configured('[hypervisor.qemu]\nshared_fs = "virtio-fs"'), "--mount", mount]
        name = ctr.start("sh", "-c", "echo data >/v/f; sleep 1000", options=options)
        script = "stat -c '%a %g' /v; grep ' /v ' /proc/mounts"
        mode, mounted = ctr.exec(name, "sh", "-c", script).text.splitlines()
        assert mode == "2775 2000"
        assert " ext4 " in mounted
        usage = json.loads(katapy("stats", "--volume-path", path))["usage"]
        assert 20 * MIB < usage[0]["total"] < 32 * MIB
        refusal = katapy("resize", "--volume-path", path, "--size", str(64 * MIB), code=1)
        assert "not the VMM's own disk" in refusal
        ctr.remove(name)
    finally:
        katapy("remove", "--volume-path", path)
    done = subprocess.run(
        ["/sbin/debugfs", "-R", "cat f", disk], capture_output=True, text=True, check=True
    )
    assert done.stdout == "data\n"
