"""Create with each of its steps failing in turn: what the client sees, and what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from protos.containerd import types_pb2
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from tests.integration.faults.conftest import Shim

pytestmark = [pytest.mark.vm, pytest.mark.root]

POD_STEPS = (
    "stdio",
    "runtime directory",
    "cgroup",
    "network namespace",
    "plan",
    "share",
    "share mount",
    "virtiofsd",
    "virtiofsd process",
    "VMM",
    "VMM process",
    "boot",
    "agent dial",
    "agent connection",
    "CreateSandbox",
)
CONTAINER_STEPS = (
    "stdio",
    "rootfs",
    "rootfs bind",
    "volumes",
    "volume",
    "guest spec",
    "CreateContainer",
    "supervision",
)

ENTRIES_OF_A_POD = 8
"""Runtime directory, share and its mount; virtiofsd and the VMM and their sockets."""
ENTRIES_OF_A_CONTAINER = 4
"""Directory and mount of its root file system and of its volume."""


async def fails(shim: Shim, step: str, **fields: Any) -> TtrpcError:
    with pytest.raises(TtrpcError) as caught:
        await shim.create(step, **fields)
    assert shim.struck, step
    return caught.value


async def fails_and_leaves(shim: Shim, step: str, before: dict[str, Any], **fields: Any) -> None:
    error = await fails(shim, step, **fields)
    assert (error.code, str(error)) == (status.RESOURCE_EXHAUSTED, f"made to fail: {step}")
    await shim.settled(before)


async def test_a_pod_step_that_fails_leaves_nothing_and_the_next_create_works(shim: Shim) -> None:
    before = await shim.steady()
    for step in POD_STEPS:
        await fails_and_leaves(shim, step, before)
    await shim.create()
    await shim.run_to_end()
    await shim.shut_down()


async def test_a_container_step_that_fails_leaves_the_pod_as_it_was(
    shim: Shim, tmp_path: Path
) -> None:
    await shim.create()
    await shim.run_to_end()
    before = await shim.steady()
    for step in CONTAINER_STEPS:
        await fails_and_leaves(shim, step, before)
    number = 1
    while (refused := await refusal(shim, f"ledger {number}")) is not None:
        assert refused.code == status.INTERNAL
        await shim.settled(before)
        number += 1
    assert number > ENTRIES_OF_A_CONTAINER
    await shim.run_to_end()
    disk = tmp_path / "disk.ext4"
    make = ["/sbin/mkfs.ext4", "-q", "-d", str(shim.bundle / "rootfs"), str(disk), "16M"]
    await trio.run_process(make)
    rootfs = [types_pb2.Mount(type="ext4", source=str(disk), options=["loop"])]
    for step in ("disk", "volumes", "CreateContainer"):
        await fails_and_leaves(shim, step, before, rootfs=rootfs)
    await shim.create(rootfs=rootfs)
    await shim.run_to_end()
    await shim.settled(before)
    await shim.shut_down()


async def test_the_ledger_that_can_not_be_written_at_any_entry(shim: Shim) -> None:
    before = await shim.steady()
    number = 1
    while (refused := await refusal(shim, f"ledger {number}")) is not None:
        assert refused.code == status.INTERNAL
        assert "can't be written: No space left on device" in str(refused)
        assert shim.struck
        if any("role=vmm" in entry for entry in shim.has()["ledger"]):
            break  # the VM is there, so the container's entries have begun
        await shim.settled(before)
        number += 1
    assert number > ENTRIES_OF_A_POD
    await shim.shut_down()


async def refusal(shim: Shim, fault: str) -> TtrpcError | None:
    try:
        await shim.create(fault)
    except TtrpcError as error:
        return error
    return None
