"""Swap space of a pod's VM: files of the host that are plugged in as disks.

It only grows, as a guest gives none back while something is in it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import trio

from shim.cleanup.ledger import Ledger
from shim.config.model import Config
from shim.errors import KatapyError, ResourceExhausted
from shim.log import Log
from shim.pod.vm import PodVm
from shim.sizing.swap import allow_swap, container_swap
from shim.sizing.vm_size import MIB
from shim.storage.disks import disk
from shim.storage.swap_file import make_swap_file
from shim.ttrpc.status import TtrpcError
from vmm.arch import architecture
from vmm.errors import VmmError

DETACH_TIMEOUT_S = 10.0


class GuestSwap:
    """The swap space of one VM.

    Args:
        vm: the running VM.
        config: the effective configuration.
        ledger: takes each file before it is made.
        log: the shim's log.
    """

    def __init__(self, vm: PodVm, config: Config, ledger: Ledger, log: Log) -> None:
        self._vm = vm
        self._config = config.hypervisor
        self._page_size = architecture(config.katapy.guest_arch).page_size
        self._ledger = ledger
        self._log = log
        self._making = trio.Lock()
        self._total = 0
        self._files = 0
        self._wanted: dict[str, int] = {}

    async def run(self) -> None:
        """Give the VM the swap space that is configured for all, when it has run a while."""
        vm = self._config
        memory = self._vm.hypervisor.spec.memory_bytes
        size = memory * vm.guest_swap_size_percent // 100
        if not vm.enable_guest_swap or not size:
            return
        await trio.sleep(vm.guest_swap_create_threshold_secs)
        try:
            await self._reach(size)
        except (KatapyError, VmmError, TtrpcError) as err:
            if not self._vm.hypervisor.exited.is_set():
                self._log.warning(f"the guest gets no swap space: {err}")

    async def admit(self, container_id: str, spec: dict[str, Any]) -> None:
        """Have the swap space that a container's annotations ask for, before it is made.

        Args:
            container_id: its id.
            spec: its OCI spec; gets the limit that lets it use the space.

        Raises:
            InvalidArgument: an annotation's value is wrong.
            KatapyError, VmmError, TtrpcError: the VM does not get it.
        """
        size = container_swap(spec, self._config.default_memory * MIB)
        if not size:
            return
        if not self._config.enable_guest_swap:
            self._log.warning(
                f"container {container_id} asks for {size // MIB} MiB of swap space, which "
                f"enable_guest_swap in [{self._config.section}] does not allow"
            )
            return
        self._wanted[container_id] = size
        try:
            await self._reach(sum(self._wanted.values()))
        except BaseException:
            self.release(container_id)
            raise
        allow_swap(spec, size)

    def release(self, container_id: str) -> None:
        """Forget a container that is gone."""
        self._wanted.pop(container_id, None)

    async def _reach(self, size: int) -> None:
        async with self._making:
            if size > self._total:
                await self._add(size - self._total)
                self._total = size

    async def _add(self, size: int) -> None:
        self._files += 1
        vm, hypervisor = self._config, self._vm.hypervisor
        name = f"swap-{self._files}"
        path = f"{vm.guest_swap_path}/{hypervisor.spec.runtime_dir.name}-{self._files}"
        entry = self._ledger.add("file", path=path)
        try:
            await trio.to_thread.run_sync(make_swap_file, path, size, self._page_size)
            handle = await hypervisor.attach(disk(vm, name, path, read_only=False))
        except OSError as err:
            raise ResourceExhausted(f"no swap space for the guest: {err}") from err
        finally:
            # The VMM has it open: it goes with the VM, whatever ends that.
            with suppress(FileNotFoundError), trio.CancelScope(shield=True):
                await trio.Path(path).unlink()
            self._ledger.remove(entry)
        try:
            await self._vm.agent.add_swap(str(handle.address))
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._vm.detach(handle, DETACH_TIMEOUT_S)
            raise
        self._log.info(f"the guest has {size // MIB} MiB more of swap space")
