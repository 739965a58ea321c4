"""A running VM's size: grown before the guest hears of a limit, shrunk after, undone on failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import trio

from shim.agent import Agent
from shim.errors import ResourceExhausted
from shim.log import Log
from shim.pod.size import PodSize
from shim.sizing.vm_size import MIB, Size, SizeRule
from vmm.errors import GuestTimeout, LimitExceeded, Unsupported, VmmError
from vmm.hypervisor import Hypervisor, Resized
from vmm.spec import VmSpec

RULE = SizeRule(1.0, 256 * MIB, 0, max_vcpus=8, max_memory=4096 * MIB)
BOOT = Size(1, 256 * MIB)


class Machine:
    """VM and agent at once: notes what is done to it, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fail: dict[str, VmmError] = {}
        self.takes = 1 << 62
        self.spec = VmSpec(Path("kernel"), Path("dir"), max_vcpus=8)

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        self._do(f"vcpus {count}")
        return Resized(count, guest_must_online=True)

    async def resize_memory(self, size: int, timeout: float) -> Resized:
        self._do(f"memory {size // MIB}")
        return Resized(min(size, self.takes), guest_must_online=False)

    async def vcpu_threads(self) -> dict[int, int]:
        return {0: 1}

    async def online_cpus(self, count: int) -> None:
        self._do(f"online {count}")

    async def apply(self, changes: dict[str, Any], cpus: str) -> None:
        self._do(f"apply {cpus}".strip())

    def _do(self, what: str) -> None:
        self.done.append(what)
        if error := self.fail.get(what.split()[0]):
            raise error


class Warnings:
    """A log whose warnings are kept."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, **_: object) -> None:
        self.warnings.append(text)

    def info(self, text: str, **_: object) -> None:
        pass


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def log() -> Warnings:
    return Warnings()


def _size(machine: Machine, log: Warnings, boot: Size = BOOT, *, fixed: bool = False) -> PodSize:
    vm, agent = cast(Hypervisor, machine), cast(Agent, machine)
    return PodSize(vm, agent, RULE, boot, fixed=fixed, log=cast(Log, log))


def _limits(cpus: float, mib: int = 0) -> dict[str, Any]:
    memory = {"memory": {"limit": mib * MIB}} if mib else {}
    return {"cpu": {"quota": int(cpus * 100_000), "period": 100_000}, **memory}


async def test_growth_comes_first_and_shrinking_last(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log)
    await size.admit("a", _limits(2, 630))
    assert machine.done == ["vcpus 2", "online 1", "memory 640"]
    machine.done.clear()
    await size.update("a", _limits(3, 315), machine.apply)
    assert machine.done == ["vcpus 3", "online 1", "apply", "memory 320"]
    machine.done.clear()
    await size.update("a", {"pids": {"limit": 9}}, machine.apply)
    assert machine.done == ["apply"]
    assert size.now == Size(3, 320 * MIB)


async def test_containers_add_up_and_what_is_gone_is_given_back(
    machine: Machine, log: Warnings, autojump_clock: trio.testing.MockClock
) -> None:
    size = _size(machine, log)
    await size.admit("a", _limits(1.5))
    await size.admit("b", _limits(1.5, 630))
    assert size.now == Size(3, 640 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(size.run)
        size.release("b")
        size.release("unknown")
        await trio.testing.wait_all_tasks_blocked()
        assert size.now == Size(2, 256 * MIB)
        nursery.cancel_scope.cancel()


async def test_never_below_what_it_booted_with(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log, Size(4, 1024 * MIB))
    await size.admit("a", _limits(2, 512))
    await size.update("a", _limits(1, 128), machine.apply)
    assert machine.done == ["apply"]


async def test_over_the_maximum_is_cut_off_with_a_warning(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log)
    await size.admit("a", _limits(99, 99999))
    assert size.now == Size(8, 4096 * MIB)
    assert "default_maxvcpus allows 8" in log.warnings[0]


@pytest.mark.parametrize("how", [GuestTimeout("no driver"), LimitExceeded("no room")])
async def test_no_memory_is_an_error_and_nothing_changes(
    machine: Machine, log: Warnings, how: VmmError
) -> None:
    size = _size(machine, log)
    machine.fail["memory"] = how
    with pytest.raises(ResourceExhausted, match=str(how)):
        await size.admit("a", _limits(1, 630))
    assert size.target() == BOOT
    await size.admit("b", _limits(1))
    with pytest.raises(ResourceExhausted, match="from 256 to 640 MiB"):
        await size.update("b", _limits(1, 630), machine.apply)
    assert "apply" not in machine.done
    assert size.target() == BOOT


async def test_no_cpus_is_a_warning(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log)
    for error in (Unsupported("vcpu_up", "hot-plug"), LimitExceeded("none left"), VmmError("x")):
        machine.fail["vcpus"] = error
        await size.admit("a", _limits(2))
        assert size.now == BOOT
        assert "2 were asked for" in log.warnings.pop()


async def test_a_guest_that_refuses_a_limit(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log)
    await size.admit("a", _limits(1))
    machine.fail["apply"] = VmmError("busy")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(size.run)
        with pytest.raises(VmmError):
            await size.update("a", _limits(2, 630), machine.apply)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert size.now == BOOT


async def test_a_guest_that_takes_or_gives_a_part(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log)
    machine.takes = 512 * MIB
    await size.admit("a", _limits(1, 630))
    assert size.now == Size(1, 512 * MIB)
    assert "took 512 of 640 MiB" in log.warnings.pop()
    machine.fail["memory"] = GuestTimeout("pages are busy")
    await size.update("a", _limits(1, 1), machine.apply)
    assert size.now == Size(1, 512 * MIB)
    # What it kept is asked for once more, beside the calls.
    del machine.fail["memory"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(size.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert size.now == BOOT


async def test_cpus_of_the_host_become_the_guests(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log, Size(3, 256 * MIB))
    assert await size.admit("a", _limits(1)) == ""
    assert await size.admit("b", {"cpu": {"quota": 1, "cpus": "10-11"}}) == "0,1"
    assert await size.admit("c", {"cpu": {"quota": 1, "cpus": "40"}}) == "2"
    assert await size.admit("d", {"cpu": {"shares": 2, "cpus": "0-63"}}) == "0-7"
    await size.update("c", {"cpu": {"cpus": "40,41"}}, machine.apply)
    assert machine.done[-1] == "apply 0,2"  # the fourth of 10, 11, 40 and 41 shares the first's


async def test_a_fixed_vm_keeps_its_size(machine: Machine, log: Warnings) -> None:
    size = _size(machine, log, fixed=True)
    await size.admit("a", _limits(2, 630))
    await size.update("a", _limits(4), machine.apply)
    assert machine.done == ["apply"]
    assert all("static_sandbox_resource_mgmt" in text for text in log.warnings)
