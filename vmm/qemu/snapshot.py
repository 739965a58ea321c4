"""Saving a VM to a directory and loading it again, by migration to and from a file.

A snapshot is the directory's ``state`` (devices, and the memory unless it is in a file of
its own) and ``vm.json``, what the VM that loads it must be like. With ``memory_file`` in
the spec the memory stays where it is: saving takes as long as the devices do, and any
number of VMs can be loaded from it, each writing to private copies of its pages.

Source: QEMU docs/devel/migration; the capability ``x-ignore-shared``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import trio

from vmm.errors import ControlTimeout, InvalidConfig, VmmError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.qemu.probe import QemuFeatures
    from vmm.qemu.qmp import QmpClient
    from vmm.spec import VmSpec

STATE_FILE = "state"
RECORD_FILE = "vm.json"
TIMEOUT_S = 120.0
_LOOK_INTERVAL = 0.01
_LOOKS = 1000
_BANDWIDTH = 1 << 40  # bytes per second: as fast as the file takes it


class Snapshots:
    """Saves and loads one VM.

    Args:
        qmp: its control connection.
        spec: the VM.
        features: what this QEMU has.
    """

    def __init__(self, qmp: QmpClient, spec: VmSpec, features: QemuFeatures) -> None:
        self._qmp = qmp
        self._spec = spec
        self._features = features

    async def save(self, target: Path) -> None:
        """Save the paused VM into an existing directory; on failure nothing is left in it.

        Raises:
            ApiError: QEMU can't save it.
            ControlTimeout: it took longer than ``TIMEOUT_S``.
        """
        state, record = target / STATE_FILE, target / RECORD_FILE
        try:
            await self._prepare()
            await self._qmp.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
            await self._transfer("migrate", state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            await self._settled()
            text = json.dumps(likeness(self._spec, self._features), indent=2)
            await trio.to_thread.run_sync(record.write_text, text + "\n")
        except BaseException:
            for path in (state, record):
                path.unlink(missing_ok=True)
            raise

    async def load(self, source: Path) -> None:
        """Load what :meth:`save` left; the VM is paused then.

        Raises:
            InvalidConfig: there is no snapshot, or it is of another kind of VM.
            ApiError: QEMU can't load it.
            ControlTimeout: it took longer than ``TIMEOUT_S``.
        """
        try:
            text = await trio.to_thread.run_sync((source / RECORD_FILE).read_text)
            saved = json.loads(text)
        except (OSError, ValueError) as error:
            raise InvalidConfig(f"no snapshot in {source}: {error}") from error
        for key, wanted in likeness(self._spec, self._features).items():
            if saved.get(key) != wanted:
                raise InvalidConfig(
                    f"the snapshot in {source} has {key} {saved.get(key)!r}, the VM {wanted!r}"
                )
        await self._prepare()
        await self._transfer("migrate-incoming", source / STATE_FILE, os.O_RDONLY)

    async def _prepare(self) -> None:
        in_place = self._spec.memory_file is not None
        capabilities = [
            {"capability": "events", "state": True},
            {"capability": "x-ignore-shared", "state": in_place},
        ]
        await self._qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})

    async def _transfer(self, command: str, path: Path, flags: int) -> None:
        with self._qmp.subscribe() as events, trio.move_on_after(TIMEOUT_S):
            await self._qmp.execute(command, {"uri": await self._uri(path, flags)})
            async for event in events:
                if event.name != "MIGRATION":
                    continue
                if event.data["status"] == "completed":
                    return
                if event.data["status"] == "failed":
                    raise await self._failure(command, path)
            raise VmmError(f"{command}: QEMU ended before {path} was done")
        raise ControlTimeout(f"{command} with {path} was not done within {TIMEOUT_S:g} s")

    async def _settled(self) -> None:
        # Newer QEMUs say that they are done a moment before the VM may go on.
        for _ in range(_LOOKS):
            if (await self._qmp.execute("query-status"))["status"] != "finish-migrate":
                return
            await trio.sleep(_LOOK_INTERVAL)
        raise ControlTimeout("QEMU does not finish the migration it has completed")

    async def _uri(self, path: Path, flags: int) -> str:
        if self._features.migrate_file:
            if flags & os.O_CREAT:
                os.close(os.open(path, flags | os.O_CLOEXEC, 0o600))
            return f"file:{path}"
        # An older QEMU reads and writes a descriptor, to whatever it leads.
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidConfig(f"{path}: {error.strerror}") from error
        try:
            return f"fd:{await self._qmp.pass_fd(fd)}"
        finally:
            os.close(fd)

    async def _failure(self, command: str, path: Path) -> VmmError:
        told = await self._qmp.execute("query-migrate")
        return VmmError(f"{command} with {path}: {told.get('error-desc') or 'QEMU says no more'}")


def likeness(spec: VmSpec, features: QemuFeatures) -> dict[str, Any]:
    """Return what two VMs must have in common for one to load what the other saved."""
    return {
        "qemu": features.version_text,
        "arch": spec.arch,
        "machine": spec.machine,
        "vcpus": [spec.vcpus, spec.vcpu_limit],
        "memory_bytes": [spec.memory_bytes, spec.memory_limit],
        "memory_in_file": spec.memory_file is not None,
        "cpu_model": spec.cpu_model,
        "channel": spec.channel,
        "hotplug_slots": [spec.hotplug_slots, spec.root_ports],
        "devices": [[type(device).__name__, device.id] for device in spec.devices],
    }
