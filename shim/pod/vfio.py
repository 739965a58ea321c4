"""The host's PCI devices in a pod's VM: there from boot, or plugged in for a container.

``cold_plug_vfio`` and ``hot_plug_vfio`` say which; with neither a container that asks for
one is refused. A group that several containers name is plugged in once. ``vfio_mode`` says
whether a driver of the guest takes the devices, or the container drives them itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from protos.kata import agent_pb2
from shim.cleanup.rollback import Rollback
from shim.config.hypervisors import Qemu, SharingHypervisor
from shim.config.model import Config
from shim.errors import FailedPrecondition
from shim.log import Log
from shim.pod.vfio_groups import functions_of, vfio_device, vfio_groups
from shim.pod.vm import PodVm
from vmm.spec import AttachedDevice, VfioDevice

NO_PORT = "no-port"
DETACH_TIMEOUT_S = 10.0
# Kata's names for a device that a driver of the guest takes, and for one it keeps away.
_LEFT_TO_GUEST, LEFT_TO_CONTAINER = "vfio-pci-gk", "vfio-pci"


def cold_plugged(spec: Mapping[str, Any], config: Config) -> tuple[VfioDevice, ...]:
    """Return the devices that the VM has from boot: those of the pod's first container.

    Args:
        spec: that container's spec.
        config: the effective configuration.

    Raises:
        InvalidArgument, NotFound: see :mod:`shim.pod.vfio_groups`.
        FailedPrecondition: likewise; or the VM lacks what ``vfio_mode`` needs.
    """
    if _place(config, "cold_plug_vfio") == NO_PORT:
        return ()
    groups = vfio_groups(spec)
    _check_mode(config, groups)
    return tuple(vfio_device(address) for group in groups for address in functions_of(group))


@dataclass(slots=True)
class _Held:
    functions: dict[str, AttachedDevice]
    undo: Rollback
    users: int = 0


class PodVfio:
    """The VFIO groups in one pod's VM.

    Args:
        vm: the pod's VM.
        config: the effective configuration.
        log: the shim's log.
    """

    def __init__(self, vm: PodVm, config: Config, log: Log) -> None:
        self._vm = vm
        self._config = config
        self._log = log
        self._held: dict[str, _Held] = {}
        self._changing = trio.Lock()

    async def add(self, spec: Mapping[str, Any], cleanup: Rollback) -> list[agent_pb2.Device]:
        """Bring the groups that a container names into the VM; what the agent has to know.

        Args:
            spec: the container's spec.
            cleanup: the container's rollback stack.

        Raises:
            InvalidArgument, NotFound, FailedPrecondition: a group can't be had, or the
                configuration gives none to this container, or lacks what ``vfio_mode`` needs.
            VmmError: the VM does not take one of the devices.
        """
        groups = vfio_groups(spec)
        _check_mode(self._config, groups)
        return [await self._add(group, cleanup) for group in groups]

    async def _add(self, group: str, cleanup: Rollback) -> agent_pb2.Device:
        async with self._changing:
            held = self._held.get(group)
            if held is None:
                held = _Held({}, Rollback(self._log))
                try:
                    await self._attach(group, held)
                except BaseException:
                    await held.undo.unwind()
                    raise
                self._held[group] = held
            held.users += 1
        cleanup.push(f"device {group}", partial(self._release, group), timeout=30.0)
        places = [f"{address}={at.address}" for address, at in held.functions.items()]
        kind = LEFT_TO_CONTAINER if self._config.runtime.vfio_mode == "vfio" else _LEFT_TO_GUEST
        return agent_pb2.Device(id=group, type=kind, container_path=group, options=places)

    async def _attach(self, group: str, held: _Held) -> None:
        hypervisor = self._vm.hypervisor
        for address in await trio.to_thread.run_sync(functions_of, group):
            device = vfio_device(address)
            handle = hypervisor.devices.get(device.id)
            if handle is None:
                require_hot_plug(self._config, f"device {group}")
                handle = await hypervisor.attach(device)
                detach = partial(self._vm.detach, handle, DETACH_TIMEOUT_S)
                held.undo.push(f"device {address}", detach, timeout=DETACH_TIMEOUT_S + 2)
            held.functions[address] = handle

    async def _release(self, group: str) -> None:
        async with self._changing:
            held = self._held[group]
            held.users -= 1
            if not held.users:
                del self._held[group]
                await held.undo.unwind()


def require_hot_plug(config: Config, what: str) -> None:
    """Raise FailedPrecondition unless devices may be plugged into a running VM."""
    if _place(config, "hot_plug_vfio") == NO_PORT:
        raise FailedPrecondition(
            f"{what}: [{config.hypervisor.section}] hot_plug_vfio is 'no-port', and "
            "cold_plug_vfio is for devices of a pod's first container"
        )


def _place(config: Config, key: str) -> str:
    vm = config.hypervisor
    if not isinstance(vm, SharingHypervisor):
        return NO_PORT
    return vm.cold_plug_vfio if key == "cold_plug_vfio" else vm.hot_plug_vfio


def _check_mode(config: Config, groups: list[str]) -> None:
    """Raise unless the VM is made such that containers can drive devices, where they are to.

    Raises:
        FailedPrecondition: it has no IOMMU, or one that can't tell the devices apart.
    """
    if not groups or config.runtime.vfio_mode == "guest-kernel":
        return
    what = f"device {groups[0]}: [runtime] vfio_mode = '{config.runtime.vfio_mode}' needs"
    vm = config.hypervisor
    if not isinstance(vm, Qemu):
        raise FailedPrecondition(f"{what} an IOMMU in the VM, which only QEMU has here")
    if not vm.enable_iommu:
        raise FailedPrecondition(
            f"{what} an IOMMU in the VM: [hypervisor.qemu] enable_iommu = true"
        )
    if vm.hot_plug_vfio == "bridge-port":
        raise FailedPrecondition(
            f"{what} devices that are in a group of their own in the VM: [hypervisor.qemu] "
            "hot_plug_vfio = 'root-port', as all that is behind the PCI bridge is one group"
        )
