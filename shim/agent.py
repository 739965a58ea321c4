"""The shim's view of the guest agent: Kata's protocol, and our extension where offered.

Everything the extension gives has a path without it, so that a Kata guest image
works too: without ``oci-json`` the spec travels as Kata's message (and loses what
has no slot there), without ``stdio-stream`` the streams are read by RPC.

Source: kata-containers ``src/libs/protocols/protos/agent.proto``.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from protos.kata import agent_pb2, csi_pb2, health_pb2, types_pb2
from protos.katapy import extension_pb2
from shim.errors import Unimplemented
from shim.guest_connection import dial
from shim.oci.kata_spec import kata_process, kata_resources, kata_spec
from shim.stdio.channel import GuestChannel
from shim.stdio.kata_channel import KataChannel
from shim.stdio.stream_channel import StreamChannel
from shim.storage.host_socket import HostSocket
from shim.storage.socket_proxy import Owner, SocketProxy
from shim.storage.sync import FileChange
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.durations import Durations
from shim.ttrpc.service import stub
from shim.ttrpc.status import TtrpcError
from shim.ttrpc.stream import ClientStream

REQUEST_TIMEOUT_S = 60.0  # Kata's default for a request to its agent
HEALTH_TIMEOUT_S = 30.0
_ENDED = (status.UNAVAILABLE, status.CANCELLED)  # the connection, or the agent
_NO_EXIT_CODE = 255
_PCI_SLOTS = re.compile(r"[0-9a-f]{2}(/[0-9a-f]{2})*")


class Agent:
    """A connected guest agent.

    Methods raise :class:`TtrpcError` with the agent's own status and text, and
    ``ConnectionClosed`` when the channel is lost.

    Args:
        client: the ttrpc connection to the agent.
        features: what its extension announced; empty for a Kata agent.
        boot_stamps: the agent's monotonic boot times in µs, by stage.
    """

    def __init__(
        self, client: Client, features: frozenset[str], boot_stamps: dict[str, int]
    ) -> None:
        self.features = features
        self.boot_stamps = boot_stamps
        self._client = client
        self._kata: Any = stub(client, agent_pb2.DESCRIPTOR.services_by_name["AgentService"])
        self._extension: Any = stub(client, extension_pb2.DESCRIPTOR.services_by_name["Extension"])
        self._health: Any = stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])

    @property
    def call_durations(self) -> Mapping[str, Durations]:
        """How long its calls took, by the full name of their request."""
        return self._client.durations

    async def check(self, timeout: float = HEALTH_TIMEOUT_S) -> None:
        """Ask whether the agent serves.

        Args:
            timeout: seconds to wait for the answer.
        """
        await self._health.Check(health_pb2.CheckRequest(), timeout=timeout)

    async def create_sandbox(
        self,
        sandbox_id: str,
        *,
        hostname: str = "",
        dns: Sequence[str] = (),
        storages: Sequence[agent_pb2.Storage] = (),
        shared_pid_namespace: bool = False,
        kernel_modules: Sequence[str] = (),
        guest_hook_path: str = "",
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        """Set up what the pod's containers share; once per VM, before any container.

        Args:
            sandbox_id: the pod's id.
            hostname: the pod's host name.
            dns: lines of resolv.conf.
            storages: mounts of the sandbox, the shared directory first.
            shared_pid_namespace: whether containers share one pid namespace.
            kernel_modules: lines of ``name key=value…`` to load.
            guest_hook_path: directory in the guest with OCI hooks.
            sysctls: kernel settings by dotted name, which need the feature ``sysctl``.
        """
        modules = [line.split() for line in kernel_modules]
        await self._kata.CreateSandbox(
            agent_pb2.CreateSandboxRequest(
                hostname=hostname,
                dns=dns,
                storages=storages,
                sandbox_pidns=shared_pid_namespace,
                sandbox_id=sandbox_id,
                guest_hook_path=guest_hook_path,
                sysctl=sysctls,
                kernel_modules=[
                    agent_pb2.KernelModule(name=words[0], parameters=words[1:])
                    for words in modules
                    if words
                ],
            ),
            timeout=REQUEST_TIMEOUT_S,
        )

    async def update_interface(self, interface: types_pb2.Interface) -> None:
        """Make the guest's link with a hardware address what is described."""
        await self._kata.UpdateInterface(
            agent_pb2.UpdateInterfaceRequest(interface=interface), timeout=REQUEST_TIMEOUT_S
        )

    async def update_routes(self, routes: Sequence[types_pb2.Route]) -> None:
        """Add or replace routes; those without a gateway first."""
        request = agent_pb2.UpdateRoutesRequest(routes=agent_pb2.Routes(Routes=routes))
        await self._kata.UpdateRoutes(request, timeout=REQUEST_TIMEOUT_S)

    async def add_neighbours(self, neighbours: Sequence[types_pb2.ARPNeighbor]) -> None:
        """Add entries to the ARP and NDP tables; an agent that can't is let off."""
        request = agent_pb2.AddARPNeighborsRequest(
            neighbors=agent_pb2.ARPNeighbors(ARPNeighbors=neighbours)
        )
        try:
            await self._kata.AddARPNeighbors(request, timeout=REQUEST_TIMEOUT_S)
        except TtrpcError as err:
            if err.code != status.UNIMPLEMENTED:
                raise

    async def listeners(self, *, local: bool = False) -> AsyncIterator[set[tuple[str, int]]]:
        """Yield the guest's listening ports, protocol ("tcp" or "udp") and number, at each change.

        Only with the feature ``listeners``. Ends when the connection is lost or the agent ends.

        Args:
            local: the TCP ports that the guest's loopback reaches, instead of those that
                others reach; needs the feature ``dial``.
        """
        known: list[extension_pb2.Listener] = []
        while True:
            request = extension_pb2.WaitListenersRequest(known=known, local=local)
            try:
                reply = await self._extension.WaitListeners(request)
            except TtrpcError as err:
                if err.code in _ENDED:
                    return
                raise
            known = list(reply.now)
            yield {(entry.protocol, entry.port) for entry in known}

    async def dial(self, port: int, host: trio.SocketStream) -> None:
        """Carry a connection to a TCP port of the guest's loopback until its end; closes it.

        Needs the feature ``dial``.
        """
        await dial(self._client, port, host)

    async def destroy_sandbox(self, timeout: float) -> None:
        """End every container and power the VM off."""
        await self._kata.DestroySandbox(agent_pb2.DestroySandboxRequest(), timeout=timeout)

    async def create_container(
        self,
        container_id: str,
        spec: dict[str, Any],
        *,
        storages: Sequence[agent_pb2.Storage] = (),
        devices: Sequence[agent_pb2.Device] = (),
        shared_pid_namespace: bool = False,
        shared_mounts: Sequence[agent_pb2.SharedMount] = (),
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> None:
        """Make a container with its init waiting to be started.

        Args:
            container_id: its id.
            spec: the OCI configuration as the guest shall see it.
            storages: mounts to make first, in order.
            devices: devices to wait for first.
            shared_pid_namespace: join the sandbox's pid namespace.
            shared_mounts: mounts of other containers that it gets.
            timeout: seconds for the whole call.
        """
        request = agent_pb2.CreateContainerRequest(
            container_id=container_id,
            exec_id=container_id,
            storages=storages,
            devices=devices,
            sandbox_pidns=shared_pid_namespace,
            shared_mounts=shared_mounts,
        )
        if "oci-json" in self.features:
            request.oci_spec_json = json.dumps(spec).encode()
        else:
            request.OCI.CopyFrom(kata_spec(spec))
        await self._kata.CreateContainer(request, timeout=timeout)

    async def start_container(self, container_id: str) -> None:
        """Let a created container's init run."""
        await self._kata.StartContainer(
            agent_pb2.StartContainerRequest(container_id=container_id), timeout=REQUEST_TIMEOUT_S
        )

    async def remove_container(self, container_id: str, timeout: float = REQUEST_TIMEOUT_S) -> None:
        """Kill what is left of a container, unmount its storages, forget it."""
        await self._kata.RemoveContainer(
            agent_pb2.RemoveContainerRequest(container_id=container_id), timeout=timeout
        )

    async def exec_process(self, container_id: str, exec_id: str, process: dict[str, Any]) -> None:
        """Start one more process in a container.

        Args:
            container_id: the container.
            exec_id: the new process's id there.
            process: the OCI process object.
        """
        request = agent_pb2.ExecProcessRequest(container_id=container_id, exec_id=exec_id)
        if "oci-json" in self.features:
            request.oci_process_json = json.dumps(process).encode()
        # The Kata form goes along in either case: the agent reads `Terminal` from it.
        request.process.CopyFrom(kata_process(process))
        await self._kata.ExecProcess(request, timeout=REQUEST_TIMEOUT_S)

    async def signal(self, container_id: str, exec_id: str, signal: int) -> None:
        """Send a signal to one process; with an empty ``exec_id`` to the whole container.

        Args:
            container_id: the container.
            exec_id: the process; equal to ``container_id`` for init alone.
            signal: Linux signal number.
        """
        await self._kata.SignalProcess(
            agent_pb2.SignalProcessRequest(
                container_id=container_id, exec_id=exec_id, signal=signal
            ),
            timeout=REQUEST_TIMEOUT_S,
        )

    async def wait(self, container_id: str, exec_id: str) -> int:
        """Wait for a process's end, however long it takes.

        Returns:
            Its exit code, or 128 + signal; 255 for what is no exit code.
        """
        reply = await self._kata.WaitProcess(
            agent_pb2.WaitProcessRequest(container_id=container_id, exec_id=exec_id)
        )
        return reply.status if 0 <= reply.status < _NO_EXIT_CODE else _NO_EXIT_CODE

    async def stats(self, container_id: str, timeout: float) -> agent_pb2.StatsContainerResponse:
        """Read a container's cgroup and network counters."""
        reply: agent_pb2.StatsContainerResponse = await self._kata.StatsContainer(
            agent_pb2.StatsContainerRequest(container_id=container_id), timeout=timeout
        )
        return reply

    async def metrics(self) -> str:
        """Figures of the guest and of the agent, in Prometheus's text format."""
        answer = await self._kata.GetMetrics(
            agent_pb2.GetMetricsRequest(), timeout=REQUEST_TIMEOUT_S
        )
        return str(answer.metrics)

    async def pause(self, container_id: str) -> None:
        """Freeze a container."""
        await self._kata.PauseContainer(
            agent_pb2.PauseContainerRequest(container_id=container_id), timeout=REQUEST_TIMEOUT_S
        )

    async def resume(self, container_id: str) -> None:
        """Thaw a container."""
        await self._kata.ResumeContainer(
            agent_pb2.ResumeContainerRequest(container_id=container_id), timeout=REQUEST_TIMEOUT_S
        )

    async def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Apply new limits.

        Args:
            container_id: the container.
            resources: OCI ``linux.resources``.
        """
        request = agent_pb2.UpdateContainerRequest(
            container_id=container_id, resources=kata_resources(resources)
        )
        if "oci-json" in self.features:
            request.oci_resources_json = json.dumps(resources).encode()
        await self._kata.UpdateContainer(request, timeout=REQUEST_TIMEOUT_S)

    async def online_cpus(self, count: int) -> None:
        """Switch hot-plugged CPUs on; returns when the guest uses them.

        Args:
            count: how many were plugged.
        """
        await self._kata.OnlineCPUMem(
            agent_pb2.OnlineCPUMemRequest(wait=True, nb_cpus=count, cpu_only=True),
            timeout=REQUEST_TIMEOUT_S,
        )

    async def resize(self, container_id: str, exec_id: str, width: int, height: int) -> None:
        """Set a process's terminal size in characters."""
        await self._kata.TtyWinResize(
            agent_pb2.TtyWinResizeRequest(
                container_id=container_id, exec_id=exec_id, row=height, column=width
            ),
            timeout=REQUEST_TIMEOUT_S,
        )

    async def remove_device(self, pci_path: str, timeout: float) -> None:
        """Have the guest let go of a PCI device.

        Args:
            pci_path: Kata's guest PCI path.
            timeout: seconds to wait.

        Raises:
            Unimplemented: this agent can't.
        """
        if "remove-device" not in self.features:
            raise Unimplemented(f"the guest's agent can't let go of PCI device {pci_path}")
        request = extension_pb2.RemoveDeviceRequest(pci_path=pci_path)
        await self._extension.RemoveDevice(request, timeout=timeout)

    async def oom_events(self) -> AsyncIterator[str]:
        """Yield the id of a container each time the guest's OOM killer strikes in it.

        Ends when the connection is lost, the agent ends or has no such events.
        """
        while True:
            try:
                event = await self._kata.GetOOMEvent(agent_pb2.GetOOMEventRequest())
            except TtrpcError as err:
                if err.code in (*_ENDED, status.UNIMPLEMENTED):
                    return
                raise
            yield event.container_id

    async def push_files(self, volume: str, changes: Sequence[FileChange]) -> None:
        """Change the files of a volume that the host keeps up to date, in order.

        Needs the feature ``push-files``. The volume is at ``PUSHED/<volume>`` in the guest.
        """
        request = extension_pb2.PushFilesRequest(
            volume=volume,
            changes=[
                extension_pb2.FileChange(
                    path=change.path,
                    file_size=change.file_size,
                    file_mode=change.file_mode,
                    uid=change.uid,
                    gid=change.gid,
                    offset=change.offset,
                    data=change.data,
                    remove=change.remove,
                    in_place=change.in_place,
                )
                for change in changes
            ],
        )
        await self._extension.PushFiles(request, timeout=REQUEST_TIMEOUT_S)

    async def pull_file(self, volume: str, path: str, limit: int) -> bytes:
        """Read the head of a file of such a volume, as the guest has left it.

        Needs the feature ``pull-file``.

        Args:
            volume: its name.
            path: relative to it.
            limit: bytes, 2 MiB at most.
        """
        request = extension_pb2.PullFileRequest(volume=volume, path=path, limit=limit)
        answer = await self._extension.PullFile(request, timeout=REQUEST_TIMEOUT_S)
        return bytes(answer.data)

    def proxy_socket(
        self, host: HostSocket, guest_path: str, owner: Owner, cover: str = ""
    ) -> SocketProxy:
        """A unix socket in the guest that leads to one on the host; run it as a task.

        Needs the feature ``sockets``, and ``socket-covers`` with a ``cover``.
        """
        return SocketProxy(self._client, host, guest_path, owner, cover)

    @contextmanager
    def console(self) -> Iterator[ClientStream]:
        """A console in the guest, in encoded frames; needs the feature ``console``."""
        stream = self._client.stream("katapy.agent.v1.Extension", "Console")
        try:
            yield stream
        finally:
            stream.cancel()

    async def volume_stats(
        self, guest_path: str, timeout: float = REQUEST_TIMEOUT_S
    ) -> csi_pb2.VolumeStatsResponse:
        """Sizes and inode counts of the file system at a guest path."""
        reply: csi_pb2.VolumeStatsResponse = await self._kata.GetVolumeStats(
            agent_pb2.VolumeStatsRequest(volume_guest_path=guest_path), timeout=timeout
        )
        return reply

    async def iptables(self, *, is_ipv6: bool, rules: bytes | None = None) -> bytes:
        """The guest's packet filter, as iptables-save writes it.

        Args:
            is_ipv6: that of IPv6.
            rules: what replaces the tables named in it, first.

        Raises:
            TtrpcError: INVALID_ARGUMENT, the rules can't be understood; UNIMPLEMENTED, the
                guest image has no iptables.
        """
        if rules is None:
            get = agent_pb2.GetIPTablesRequest(is_ipv6=is_ipv6)
            reply = await self._kata.GetIPTables(get, timeout=REQUEST_TIMEOUT_S)
        else:
            new = agent_pb2.SetIPTablesRequest(is_ipv6=is_ipv6, data=rules)
            reply = await self._kata.SetIPTables(new, timeout=REQUEST_TIMEOUT_S)
        data: bytes = reply.data
        return data

    async def add_swap(self, address: str) -> None:
        """Have the guest use a disk as swap space.

        Args:
            address: where the guest finds it, as :mod:`vmm.spec` writes addresses.
        """
        if _PCI_SLOTS.fullmatch(address):
            slots = [int(slot, 16) for slot in address.split("/")]
            request = agent_pb2.AddSwapRequest(PCIPath=slots)
            await self._kata.AddSwap(request, timeout=REQUEST_TIMEOUT_S)
        else:
            at = agent_pb2.AddSwapPathRequest(path=address)
            await self._kata.AddSwapPath(at, timeout=REQUEST_TIMEOUT_S)

    async def resize_volume(self, guest_path: str, size: int) -> None:
        """Have the file system at a guest path grow to ``size`` bytes; its disk has them."""
        await self._kata.ResizeVolume(
            agent_pb2.ResizeVolumeRequest(volume_guest_path=guest_path, size=size),
            timeout=REQUEST_TIMEOUT_S,
        )

    async def start_archive(self, request: extension_pb2.ArchiveRequest) -> None:
        """Start what writes or unpacks an archive of a path in a container, as an exec of it.

        Needs the feature ``archive``.
        """
        await self._extension.Archive(request, timeout=REQUEST_TIMEOUT_S)

    def stdio(self, container_id: str, exec_id: str, *, terminal: bool) -> GuestChannel:
        """The process's streams, by our streaming extension or by Kata's RPCs.

        Args:
            container_id: the container.
            exec_id: the process; equal to ``container_id`` for init.
            terminal: whether the process has a terminal, and so no stderr of its own.
        """
        if "stdio-stream" in self.features:
            return StreamChannel(self._client, container_id, exec_id)
        return KataChannel(self._kata, container_id, exec_id, terminal=terminal)
