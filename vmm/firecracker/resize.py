"""Grow and shrink a Firecracker VM's memory by its virtio-mem device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vmm.errors import GuestTimeout, InvalidConfig
from vmm.events import MemoryChanged
from vmm.firecracker.features import MEM_BLOCK
from vmm.hypervisor import Resized
from vmm.spec import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.events import Event
    from vmm.firecracker.hotplug import Call
    from vmm.spec import VmSpec

_TARGET = "/hotplug/memory"
_LOOK_INTERVAL = 0.05  # nothing reports what the guest does


async def resize_memory(
    call: Call,
    spec: VmSpec,
    hot_limit: int,
    size_bytes: int,
    timeout: float,
    publish: Callable[[Event], None],
) -> Resized:
    """See :meth:`vmm.hypervisor.Hypervisor.resize_memory`.

    Args:
        call: makes a request.
        spec: the VM.
        hot_limit: size of the virtio-mem device.
        size_bytes: memory the guest is to have.
        timeout: seconds to wait for the guest.
        publish: takes events.
    """
    hot = -(-(size_bytes - spec.memory_bytes) // MEM_BLOCK) * MEM_BLOCK
    if not 0 <= hot <= hot_limit:
        limits = f"{spec.memory_bytes} to {spec.memory_bytes + hot_limit}"
        raise InvalidConfig(f"{size_bytes} bytes of memory: this VM can have {limits}")
    before = actual = await _plugged(call)
    await _request(call, hot)
    with trio.move_on_after(timeout):
        while (actual := await _plugged(call)) != hot:  # noqa: ASYNC110 - no events
            await trio.sleep(_LOOK_INTERVAL)
    if actual != hot:
        # The guest must not go on behind our back with what we no longer count on.
        await _request(call, actual)
        if actual == before:
            raise GuestTimeout(
                f"the guest changed no memory within {timeout:g} s; its kernel needs virtio_mem"
            )
    publish(MemoryChanged(actual))
    return Resized(spec.memory_bytes + actual, guest_must_online=False)


async def _request(call: Call, size: int) -> None:
    await call("PATCH", _TARGET, {"requested_size_mib": size // MIB})


async def _plugged(call: Call) -> int:
    status = await call("GET", _TARGET)
    return int(status["plugged_size_mib"]) * MIB
