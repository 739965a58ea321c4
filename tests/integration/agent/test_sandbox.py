"""The sandbox around the containers: storages, files, guest facts, the end."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from protos.kata import agent_pb2
from protos.kata.agent_pb2 import CopyFileRequest, Storage
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest, oci_spec

pytestmark = pytest.mark.root
SHARED = "/run/kata-containers/shared/containers"


def write_hooks(root: Path) -> Path:
    """A directory of hooks that each add a line to the file ``ran``."""
    for kind in ("prestart", "poststart", "poststop"):
        hook = root / "hooks" / kind / "note"
        hook.parent.mkdir(parents=True)
        hook.write_text(f'#!/bin/sh\nread state; echo "$1 $state" >> {root}/ran\n')
        hook.chmod(0o755)
        (hook.parent / "README").write_text("no program")
    return root / "hooks"


@pytest.fixture(scope="module", autouse=True)
def _sandbox(agent: AgentProcess) -> None:
    hooks = write_hooks(agent.root)

    async def create() -> None:
        async with agent.connect() as guest:
            shm = Storage(
                driver="ephemeral",
                source="shm",
                fstype="tmpfs",
                options=["noexec", "nosuid", "nodev", "mode=1777", "size=1048576"],
                mount_point="/run/kata-containers/sandbox/shm",
            )
            request = agent_pb2.CreateSandboxRequest(
                sandbox_id="s", storages=[shm], guest_hook_path=str(hooks)
            )
            await guest.agent.CreateSandbox(request, timeout=LIMIT)

    trio.run(create)


def mounts(agent: AgentProcess) -> dict[str, str]:
    """Mount points that only the agent's namespace has, with their options."""
    rows = (line.split() for line in Path(f"/proc/{agent.pid}/mounts").read_text().splitlines())
    return {row[1]: row[3] for row in rows if row[1].startswith("/run/kata-containers/")}


async def create(guest: Guest, name: str, storages: list[Storage], **extra: Any) -> None:
    spec = oci_spec(guest.rootfs, ["cat", "/data/file"], **extra)
    spec["mounts"].append(
        {
            "destination": "/data",
            "source": f"/run/kata-containers/sandbox/{name}",
            "type": "bind",
            "options": ["bind"],
        }
    )

    request = agent_pb2.CreateContainerRequest(
        container_id=name, storages=storages, oci_spec_json=json.dumps(spec).encode()
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)


async def test_sandbox_storage_is_mounted_and_resized(agent: AgentProcess, guest: Guest) -> None:
    point = "/run/kata-containers/sandbox/shm"
    assert "size=1024k" in mounts(agent)[point]
    request = agent_pb2.UpdateEphemeralMountsRequest(
        storages=[Storage(driver="ephemeral", options=["size=2097152"], mount_point=point)]
    )
    await guest.agent.UpdateEphemeralMounts(request, timeout=LIMIT)
    assert "size=2048k" in mounts(agent)[point]
    stats = agent_pb2.VolumeStatsRequest(volume_guest_path=point)
    usage = (await guest.agent.GetVolumeStats(stats, timeout=LIMIT)).usage
    assert usage[0].total == 2097152


async def test_a_second_sandbox_is_refused(guest: Guest) -> None:
    with pytest.raises(TtrpcError) as caught:
        await guest.agent.CreateSandbox(agent_pb2.CreateSandboxRequest(), timeout=LIMIT)
    assert caught.value.code == status.FAILED_PRECONDITION


async def test_bind_and_its_read_only_remount(agent: AgentProcess, guest: Guest) -> None:
    folder = agent.root / "source"
    folder.mkdir()
    (folder / "file").write_text("hello")
    storage = Storage(
        driver="bind",
        source=str(folder),
        fstype="bind",
        options=["bind", "ro", "nosuid"],
        mount_point="/run/kata-containers/sandbox/s-bind",
    )
    await create(guest, "s-bind", [storage])
    assert mounts(agent)[storage.mount_point].startswith("ro,nosuid")
    await guest.start("s-bind")
    assert await guest.finish("s-bind") == (0, b"hello", b"")
    await guest.remove("s-bind")
    assert storage.mount_point not in mounts(agent)


async def test_hooks_of_the_image_run_for_each_container(agent: AgentProcess, guest: Guest) -> None:
    request = agent_pb2.CreateContainerRequest(
        container_id="s-hooks", oci_spec_json=json.dumps(oci_spec(guest.rootfs, ["true"])).encode()
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)
    await guest.start("s-hooks")
    await guest.finish("s-hooks")
    await guest.remove("s-hooks")
    lines = (agent.root / "ran").read_text().splitlines()
    ran = [line.split()[0] for line in lines if '"s-hooks"' in line]
    assert ran == ["prestart", "poststart", "poststop"]


async def test_a_shared_mount_point_is_counted(agent: AgentProcess, guest: Guest) -> None:
    storage = Storage(
        driver="ephemeral",
        source="tmpfs",
        fstype="tmpfs",
        options=["fsgid=123", "mode=0770"],
        mount_point="/run/kata-containers/sandbox/s-one",
    )
    await create(guest, "s-one", [storage])
    request = agent_pb2.CreateContainerRequest(
        container_id="s-two",
        storages=[storage],
        oci_spec_json=b"{}",
    )
    with pytest.raises(TtrpcError):  # refused by crun, and the second use given back
        await guest.agent.CreateContainer(request, timeout=LIMIT)
    assert storage.mount_point in mounts(agent)
    await guest.remove("s-one")
    assert storage.mount_point not in mounts(agent)


@pytest.mark.parametrize(
    ("storage", "code", "text"),
    [
        (Storage(driver="zip", mount_point="/x"), status.INVALID_ARGUMENT, "unknown storage"),
        (Storage(driver="local", mount_point="x"), status.INVALID_ARGUMENT, "bad mount point"),
        (
            Storage(driver="blk", source="zz", mount_point="/run/kata-containers/sandbox/b"),
            status.INVALID_ARGUMENT,
            "bad PCI path",
        ),
        (
            Storage(driver="virtio-fs", source="t", mount_point="/run/kata-containers/sandbox/v"),
            status.INTERNAL,
            "virtio-fs t at",
        ),
    ],
)
async def test_bad_storages(
    agent: AgentProcess, guest: Guest, storage: Storage, code: int, text: str
) -> None:
    before = mounts(agent)
    good = Storage(
        driver="ephemeral",
        source="tmpfs",
        fstype="tmpfs",
        mount_point="/run/kata-containers/sandbox/s-rolled-back",
    )
    with pytest.raises(TtrpcError, match=text) as caught:
        await create(guest, "s-bad", [good, storage])
    assert caught.value.code == code
    assert mounts(agent) == before


async def copy(guest: Guest, name: str, data: bytes, **fields: Any) -> None:
    values = {"file_mode": stat.S_IFREG | 0o640, "dir_mode": 0o750, "uid": -1, "gid": -1}
    request = CopyFileRequest(path=f"{SHARED}/{name}", data=data, **{**values, **fields})
    await guest.agent.CopyFile(request, timeout=LIMIT)


async def test_copy_file_in_chunks(agent: AgentProcess, guest: Guest) -> None:
    target = agent.root / "shared/containers/a/b/file.conf"
    await copy(guest, "a/b/file.conf", b"abc", file_size=6)
    assert not target.exists()
    await copy(guest, "a/b/file.conf", b"def", file_size=6, offset=3)
    assert target.read_bytes() == b"abcdef"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o750
    assert [entry.name for entry in target.parent.iterdir()] == ["file.conf"]


async def test_copy_file_follows_no_link(agent: AgentProcess, guest: Guest) -> None:
    await copy(guest, "out", str(agent.root.parent).encode(), file_mode=stat.S_IFLNK)
    with pytest.raises(TtrpcError):
        await copy(guest, "out/file", b"x", file_size=1)
    assert not (agent.root.parent / "file").exists()
    await copy(guest, "out", b"x", file_size=1)  # the link itself is replaced
    assert (agent.root / "shared/containers/out").read_bytes() == b"x"
    for path in ("../../up", "/../../etc/x"):
        with pytest.raises(TtrpcError) as caught:
            await copy(guest, path, b"x", file_size=1)
        assert caught.value.code == status.INVALID_ARGUMENT


async def test_shared_namespaces(agent: AgentProcess, guest: Guest) -> None:
    """Containers described in Kata's form share ipc and uts with the first one."""
    names = ("s-first", "s-second")
    for name in names:
        request = agent_pb2.CreateContainerRequest(
            container_id=name,
            OCI={
                "Version": "1.0.2",
                "Process": {"Args": ["ls", "-l", "/proc/self/ns"], "Env": ["PATH=/bin"]},
                "Root": {"Path": guest.rootfs},
                "Mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
                "Linux": {"Namespaces": [{"Type": kind} for kind in ("ipc", "uts", "mount")]},
            },
        )
        await guest.agent.CreateContainer(request, timeout=LIMIT)
    seen = []
    for name in names:
        await guest.start(name)
        _code, output, _ = await guest.finish(name)
        rows = (line.rpartition(b" -> ") for line in output.splitlines())
        seen.append({left.split()[-1]: link for left, arrow, link in rows if arrow})
        await guest.remove(name)
    first, second = seen
    assert first[b"ipc"] == second[b"ipc"]
    assert first[b"uts"] == second[b"uts"]
    assert first[b"mnt"] != second[b"mnt"]


async def test_guest_details_and_metrics(guest: Guest) -> None:
    request = agent_pb2.GuestDetailsRequest(mem_block_size=True, mem_hotplug_probe=True)
    details = (await guest.agent.GetGuestDetails(request, timeout=LIMIT)).agent_details
    assert details.supports_seccomp
    assert "virtio-fs" in details.storage_handlers
    metrics = await guest.agent.GetMetrics(agent_pb2.GetMetricsRequest(), timeout=LIMIT)
    rows = dict(
        line.rsplit(" ", 1) for line in metrics.metrics.splitlines() if not line.startswith("#")
    )
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 10
    assert int(rows['kata_guest_meminfo{item="memtotal"}']) == total
    assert int(rows["kata_agent_process_resident_memory_bytes"]) > 1 << 20


async def test_termination_message(agent: AgentProcess, guest: Guest) -> None:
    (Path(guest.rootfs) / "tmp/message").write_text("it failed")
    annotations = {"io.kubernetes.container.terminationMessagePath": "/tmp/message"}
    await guest.create("s-term", ["true"], annotations=annotations)
    request = agent_pb2.GetDiagnosticDataRequest(log_type="termination_log", container_id="s-term")
    assert (await guest.agent.GetDiagnosticData(request, timeout=LIMIT)).data == "it failed"
    await guest.remove("s-term")


async def test_kata_spec(guest: Guest) -> None:
    """A container described by Kata's protobuf spec instead of JSON."""
    request = agent_pb2.CreateContainerRequest(
        container_id="s-kata",
        exec_id="s-kata",
        OCI={
            "Version": "1.0.2",
            "Process": {
                "Args": ["sh", "-c", "id -u; cat /proc/self/limits"],
                "Env": ["PATH=/bin"],
                "Cwd": "/",
                "User": {"UID": 1000},
                "Rlimits": [{"Type": "RLIMIT_CORE"}],
            },
            "Root": {"Path": guest.rootfs},
            "Mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "Linux": {"Namespaces": [{"Type": "pid"}, {"Type": "mount"}, {"Type": "uts"}]},
        },
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)
    await guest.start("s-kata")
    code, output, _ = await guest.finish("s-kata")
    lines = output.splitlines()
    assert (code, lines[0]) == (0, b"1000")
    core = next(line for line in lines if line.startswith(b"Max core file size"))
    assert core.split()[4:6] == [b"0", b"0"]
    await guest.remove("s-kata")


async def test_destroying_the_sandbox_ends_the_agent(agent: AgentProcess, guest: Guest) -> None:
    await guest.create("s-left", ["sleep", "1000"])
    await guest.start("s-left")
    await guest.agent.DestroySandbox(agent_pb2.DestroySandboxRequest(), timeout=LIMIT)
    assert await trio.to_thread.run_sync(agent.popen.wait, LIMIT) == 0
    assert not os.path.exists(agent.socket)
