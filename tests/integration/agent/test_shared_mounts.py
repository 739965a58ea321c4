"""A mount of one container, shown in another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protos.kata.agent_pb2 import CreateContainerRequest, SharedMount
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, Guest, oci_spec

pytestmark = pytest.mark.root
NAME = "io.kubernetes.cri.container-name"
MOUNTING = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]


async def create(
    guest: Guest, container_id: str, args: list[str], *shared: SharedMount, **extra: Any
) -> None:
    spec = oci_spec(guest.rootfs, args, **extra)
    sets = ("bounding", "effective", "permitted")
    spec["process"]["capabilities"] = dict.fromkeys(sets, MOUNTING)
    request = CreateContainerRequest(
        container_id=container_id, shared_mounts=shared, oci_spec_json=json.dumps(spec).encode()
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)


def mount(source: str = "maker", path: str = "/tmp/late", target: str = "/tmp/got") -> SharedMount:
    return SharedMount(name="m", src_ctr=source, src_path=path, dst_ctr="taker", dst_path=target)


async def test_a_mount_made_later_is_shown(guest: Guest) -> None:
    script = "sleep 0.3; mkdir -p /tmp/late; mount -t tmpfs none /tmp/late; echo hi >/tmp/late/f"
    args = ["sh", "-c", f"{script}; sleep 1000"]
    await create(guest, "m1", args, annotations={NAME: "maker"})
    await guest.start("m1")
    try:
        await create(guest, "t1", ["sh", "-c", "cat /tmp/got/f; echo more >>/tmp/got/f"], mount())
        await guest.start("t1")
        assert await guest.finish("t1") == (0, b"hi\n", b"")
        await guest.remove("t1")
        await guest.exec("m1", "look", ["cat", "/tmp/late/f"])
        assert await guest.finish("m1", "look") == (0, b"hi\nmore\n", b"")
    finally:
        await guest.remove("m1")


async def test_what_is_missing_is_said_and_leaves_no_container(guest: Guest) -> None:
    await create(guest, "m2", ["sleep", "1000"])
    await guest.start("m2")
    try:
        for shared, code, text in (
            (mount(), status.FAILED_PRECONDITION, "container maker: no such container runs"),
            (mount("m2", "/dev", "/proc/x"), status.INVALID_ARGUMENT, "/proc/x: No such file"),
            (mount("m2", "/dev/../etc"), status.INVALID_ARGUMENT, "bad path"),
        ):
            with pytest.raises(TtrpcError) as caught:
                await create(guest, "t2", ["true"], shared)
            assert (caught.value.code, text in caught.value.message) == (code, True), caught.value
        await create(guest, "t2", ["ls", "/tmp/dev/pts"], mount("m2", "/dev", "/tmp/dev"))
        await guest.start("t2")
        code, output, _ = await guest.finish("t2")
        assert (code, b"ptmx" in output) == (0, True)
        await guest.remove("t2")
    finally:
        await guest.remove("m2")
