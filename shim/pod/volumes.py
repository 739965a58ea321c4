"""The volumes of a pod: each is brought into the guest once, however many containers use it.

A volume lives from its first user to its last; what containers of a pod share beyond
that (an emptyDir in the guest) lives until the VM ends.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import trio

from protos.kata import agent_pb2
from shim.cleanup.ledger import Ledger
from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.log import Log
from shim.oci.mounts import HostMount
from shim.pod.direct_volumes import DirectVolumes
from shim.pod.disks import PodDisks
from shim.pod.ready import Ready
from shim.pod.vm import PodVm
from shim.storage import direct_volume
from shim.storage.direct_volume import DirectVolume
from shim.storage.disk import make_scratch
from shim.storage.guest_volumes import (
    GUEST_SANDBOX,
    assigned_disk,
    guest_directory,
    memory_volume,
    scratch_disk,
)
from shim.storage.host_socket import HostSocket, hold
from shim.storage.kata_volume import disk_of_mount
from shim.storage.options import IdMap, Owners
from shim.storage.share import Share
from shim.storage.socket_directory import SocketDirectory
from shim.storage.socket_proxy import Owner
from shim.storage.source import look_at
from shim.storage.sync import FileChange, SyncedFiles
from shim.storage.volumes import (
    AssignedDisk,
    GuestDirectory,
    MemoryVolume,
    MountedDisk,
    ProxiedSocket,
    PushedVolume,
    RawDisk,
    ScratchDisk,
    SharedVolume,
    VolumePlan,
    VolumeSettings,
    may_have_sockets,
    plan_volume,
)
from vmm.hypervisor import Hypervisor
from vmm.spec import AttachedDevice

SHARE_TIMEOUT_S = 30.0
LOOK_TIMEOUT_S = 10.0

StartTask = Callable[[Callable[..., Awaitable[None]]], Awaitable[object]]
"""``nursery.start`` of the pod's nursery."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A volume as it is in the guest.

    Attributes:
        path: what to bind, "" for a device.
        storages: mounts the agent makes first.
        disk: where the guest finds the disk that is the volume, "" for a directory.
        guarded: it is read-only by itself, and what is mounted below it is not.
        follows: the guest mounts more below it, which its containers are to see.
        bring_back: has the host's file be as the guest's copy; None where it is no copy of a
            file.
    """

    path: str = ""
    storages: tuple[agent_pb2.Storage, ...] = ()
    disk: str = ""
    guarded: bool = False
    follows: bool = False
    bring_back: Callable[[], Awaitable[None]] | None = None


@dataclass(slots=True)
class _Held:
    placed: Placed
    undo: Rollback
    users: int = 0


class _View(NamedTuple):
    """How a shared volume is shown to the guest."""

    readonly: bool
    writable_below: bool
    follow: bool
    owners: Owners | None
    sockets: bool


def _owners(mount: HostMount) -> Owners | None:
    if not (mount.uid_maps or mount.gid_maps):
        return None
    uids, gids = (
        tuple(IdMap(*entry) for entry in maps) for maps in (mount.uid_maps, mount.gid_maps)
    )
    return Owners(uids, gids)


def _below_is_writable(plan: SharedVolume, mount: HostMount) -> bool:
    return plan.covers and mount.recursive and mount.readonly and not mount.readonly_below


def _follows(mount: HostMount) -> bool:
    return any(word.endswith(("shared", "slave")) for word in mount.propagation)


@dataclass(frozen=True, slots=True)
class VolumeMeans:
    """What a pod's volumes are made with, whatever VM they are for.

    Attributes:
        ledger: takes every resource before it is made.
        start: starts a task that lives as long as the pod.
        direct: the direct-assigned volumes in use.
    """

    ledger: Ledger
    start: StartTask
    direct: DirectVolumes


class PodVolumes:
    """Brings volumes into one pod's VM.

    Args:
        vm: the pod's VM.
        share: the pod's shared directory; None when it has none.
        config: the effective configuration.
        means: what they are made with.
        log: the shim's log.
    """

    def __init__(
        self, vm: PodVm, share: Share | None, config: Config, means: VolumeMeans, log: Log
    ) -> None:
        self._vm = vm
        self._share = share
        self._config = config
        self._ledger = means.ledger
        self._start = means.start
        self._direct = means.direct
        self._log = log
        self._held: dict[tuple[object, ...], _Held] = {}
        self._making = trio.Lock()
        self._disks = PodDisks(vm, config)
        self._serial = 0

    def settings(self) -> VolumeSettings:
        """What can be done with volumes here."""
        features = self._vm.agent.features
        runtime = self._config.runtime
        return VolumeSettings(
            kubelet_root=str(runtime.kubelet_root_dir),
            emptydir_mode="block-plain" if runtime.emptydir_mode == "block-plain" else "shared-fs",
            guest_emptydir=not runtime.disable_guest_empty_dir,
            can_share=self._share is not None,
            can_attach=self._vm.hypervisor.capabilities.block_hot != "none",
            can_push="push-files" in features,
            can_listen="sockets" in features,
            can_cover="socket-covers" in features and self._share is not None,
            socket_directories=self._config.katapy.socket_directories,
        )

    async def add(self, mount: HostMount, cleanup: Rollback) -> Placed:
        """Bring a bind mount's source into the guest.

        Args:
            mount: the mount.
            cleanup: the container's rollback stack; gets the volume's release.

        Raises:
            NotFound, InvalidArgument, Unimplemented: there is no such source, or no way.
            VmmError: the VM does not take the disk.
        """
        disk = disk_of_mount(mount.source, mount.fstype, mount.options)
        if disk is not None:
            return await self._use(MountedDisk(disk), mount, cleanup)
        settings = self.settings()
        sockets = mount.recursive and may_have_sockets(mount.source, settings)
        look = partial(look_at, mount.source, sockets=sockets)
        with trio.fail_after(LOOK_TIMEOUT_S):
            source = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        owners = _owners(mount)
        if owners is not None:
            source = replace(source, uid=owners.uid(source.uid), gid=owners.gid(source.gid))
        plan = plan_volume(source, settings)
        if isinstance(plan, SharedVolume) and not mount.recursive:
            plan = replace(plan, sockets=False)  # what is mounted below does not come along
        if stat.S_ISFIFO(source.mode):
            self._log.warning(
                f"volume {source.path}: through a FIFO of the host the pod's processes reach "
                "each other, not those of the host"
            )
        if owners is not None and isinstance(plan, PushedVolume) and self._share is not None:
            plan = SharedVolume(source.path, source.covers)  # whose files can be mapped
        return await self._use(plan, mount, cleanup)

    async def add_disk(self, path: str, cleanup: Rollback, *, read_only: bool) -> Placed:
        """Bring a block device into the guest. Args and errors as :meth:`add`."""
        mount = HostMount(-1, path, path, read_only, False, ())
        return await self._use(RawDisk(path), mount, cleanup)

    async def _use(self, plan: VolumePlan, mount: HostMount, cleanup: Rollback) -> Placed:
        async with self._making:
            key = self._key(plan, mount)
            held = self._held.get(key)
            if held is None:
                undo = Rollback(self._log)
                try:
                    placed = await self._make(plan, mount, undo)
                except BaseException:
                    await undo.unwind()
                    raise
                held = self._held[key] = _Held(placed, undo)
            held.users += 1
            cleanup.push(
                f"volume {mount.source}", partial(self._release, key), timeout=SHARE_TIMEOUT_S
            )
            return held.placed

    async def _release(self, key: tuple[object, ...]) -> None:
        async with self._making:
            held = self._held[key]
            held.users -= 1
            if not held.users:
                del self._held[key]
                await held.undo.unwind()

    def _key(self, plan: VolumePlan, mount: HostMount) -> tuple[object, ...]:
        """What makes two mounts the same volume.

        One that the guest may write to serves its readers too, and one that follows the
        host's mounts those that need not: two views of a file in the guest would have a
        page cache and locks each. Only where that would make a mount below read-only that
        is to be writable there are two.
        """
        match plan:
            case SharedVolume():
                return self._shared_key(plan, mount)
            case RawDisk() | AssignedDisk() | MountedDisk():
                return (plan, mount.readonly)
            case _:
                return (plan,)

    def _shared_key(self, plan: SharedVolume, mount: HostMount) -> tuple[object, ...]:
        owners = _owners(mount)
        wanted = _View(
            mount.readonly, _below_is_writable(plan, mount), _follows(mount), owners, plan.sockets
        )
        views = [wanted]
        if not wanted.writable_below:
            views = [
                _View(readonly, False, follow, owners, sockets)
                for readonly in (False, True)[: 1 + wanted.readonly]
                for follow in (True, False)[: 2 - wanted.follow]
                for sockets in (True, False)[: 2 - wanted.sockets]
            ]
        keys = [(plan.source, mount.recursive, view) for view in views]
        held = [key for key in keys if key in self._held]
        return held[0] if held else (plan.source, mount.recursive, wanted)

    async def _make(self, plan: VolumePlan, mount: HostMount, undo: Rollback) -> Placed:
        self._serial += 1
        match plan:
            case SharedVolume():
                return await self._share_path(plan, mount, undo)
            case PushedVolume():
                return await self._push(plan, undo)
            case MemoryVolume():
                return Placed(*memory_volume(plan))
            case GuestDirectory():
                return Placed(*guest_directory(plan))
            case ProxiedSocket():
                return await self._proxy(plan, undo)
            case RawDisk():
                name = self._disk_name()
                handle = await self._disks.attach(name, plan.path, mount.readonly, undo)
                return Placed(disk=str(handle.address))
            case ScratchDisk():
                make = partial(
                    make_scratch, plan.directory, uid=plan.uid, gid=plan.gid, mode=plan.mode
                )
                image = await trio.to_thread.run_sync(make)
                handle = await self._disks.attach(self._disk_name(), image, False, undo)
                return Placed(*scratch_disk(plan.directory, str(handle.address)))
            case AssignedDisk():
                return await self._assign(plan, mount, undo)
            case MountedDisk(volume):
                handle = await self._assigned(volume, mount, undo)
                address = str(handle.address)
                return Placed(*assigned_disk(volume, address, read_only=mount.readonly))

    async def _share_path(self, plan: SharedVolume, mount: HostMount, undo: Rollback) -> Placed:
        share, owner = self._share, f"v{self._serial}"
        assert share is not None
        undo.push("the shared volume", partial(share.remove, owner), timeout=SHARE_TIMEOUT_S)
        below = _below_is_writable(plan, mount)
        path = await share.add_volume(
            owner,
            plan.source,
            read_only=mount.readonly,
            writable_below=below,
            follow=_follows(mount),
            owners=_owners(mount),
            recursive=mount.recursive,
        )
        if plan.sockets:
            listening = f"{GUEST_SANDBOX}/sockets/{owner}"
            make = self._vm.agent.proxy_socket
            sockets = SocketDirectory(plan.source, path, listening, make, _owners(mount))
            await self._run(sockets.run, f"the way to the sockets in {plan.source}", undo)
        return Placed(path, guarded=below, follows=plan.sockets)

    async def _push(self, plan: PushedVolume, undo: Rollback) -> Placed:
        agent, name = self._vm.agent, f"v{self._serial}"
        files = SyncedFiles(plan.source, partial(agent.push_files, name), is_file=plan.is_file)
        undo.push("the copied files", partial(self._remove_pushed, name))
        await self._run(files.run, f"the copy of {plan.source}", undo)
        path = f"{GUEST_SANDBOX}/pushed/{name}"
        if not plan.is_file:
            return Placed(path)
        pull = partial(agent.pull_file, name)
        back = partial(files.bring_back, pull) if "pull-file" in agent.features else None
        return Placed(f"{path}/{os.path.basename(plan.source)}", bring_back=back)

    async def _remove_pushed(self, name: str) -> None:
        if not self._gone():
            await self._vm.agent.push_files(name, [FileChange("", remove=True)])

    async def _proxy(self, plan: ProxiedSocket, undo: Rollback) -> Placed:
        path = f"{GUEST_SANDBOX}/sockets/v{self._serial}"
        owner = Owner(plan.uid, plan.gid, plan.mode)
        # Its directory may be a volume of the pod's too, which can put links there.
        folder, name = os.path.split(await trio.to_thread.run_sync(os.path.realpath, plan.path))
        held = hold(folder)

        async def let_go() -> None:
            os.close(held)

        undo.push(f"directory {folder}", let_go)
        host = HostSocket(plan.path, held, name)
        proxy = self._vm.agent.proxy_socket(host, path, owner)
        await self._run(proxy.run, f"socket {plan.path} in the guest", undo)
        return Placed(path)

    async def _run(self, work: Callable[..., Awaitable[None]], what: str, undo: Rollback) -> None:
        """Run a task of the volume's; its failure is the caller's until it is ready."""
        scope = trio.CancelScope()
        ended = trio.Event()

        async def guarded(*, task_status: trio.TaskStatus[None]) -> None:
            ready = Ready(task_status)
            try:
                with scope:
                    await work(task_status=ready)
            except Exception as error:
                if not ready.said:
                    raise
                if not self._gone():
                    self._log.error(f"{what} has ended: {error!r}")
            finally:
                ended.set()

        async def stop() -> None:
            scope.cancel()
            await ended.wait()

        await self._start(guarded)
        undo.push(what, stop)

    async def _assign(self, plan: AssignedDisk, mount: HostMount, undo: Rollback) -> Placed:
        volume = plan.volume
        handle = await self._assigned(volume, mount, undo)
        path, storages = assigned_disk(volume, str(handle.address), read_only=mount.readonly)
        note = direct_volume.user_file(volume.path, self._direct.sandbox_id)
        entry = self._ledger.add("file", path=note)

        async def forget() -> None:
            self._direct.remove(volume.path)
            await trio.Path(note).unlink(missing_ok=True)
            self._ledger.remove(entry)

        undo.push(f"the note at {note}", forget)
        await trio.Path(note).write_text(self._direct.address)
        self._direct.add(volume.path, path, handle, self._vm)
        return Placed(path, storages)

    async def _assigned(
        self, volume: DirectVolume, mount: HostMount, undo: Rollback
    ) -> AttachedDevice:
        read_only = mount.readonly or "ro" in volume.options
        return await self._disks.assign(self._disk_name(), volume, read_only, undo)

    def _disk_name(self) -> str:
        return f"volume-{self._serial}"

    def _gone(self) -> bool:
        hypervisor: Hypervisor = self._vm.hypervisor
        return self._vm.gone.is_set() or hypervisor.exited.is_set()
