"""Taking a hot-plugged device away from a VM and its guest, in the order the VMM needs."""

from __future__ import annotations

from shim.agent import Agent
from vmm.hypervisor import Hypervisor
from vmm.spec import AttachedDevice


async def unplug(
    hypervisor: Hypervisor, agent: Agent, handle: AttachedDevice, timeout: float
) -> None:
    """Take a device away that nothing in the guest uses any more.

    Args:
        hypervisor: the VM.
        agent: its agent, which lets go of the device first where the VMM can't ask for it.
        handle: the device.
        timeout: seconds the guest has to let go of it.

    Raises:
        VmmError: the VMM refuses, or the guest kept it.
        Unimplemented, TtrpcError: the agent could not let go of it.
    """
    if hypervisor.capabilities.guest_remove_first:
        await agent.remove_device(str(handle.address), timeout)
    await hypervisor.detach(handle, timeout)
