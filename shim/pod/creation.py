"""Makes a container in a running VM: files, room, hooks, spec, and crun by the agent.

Each thing is pushed on the container's rollback stack before it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from protos.kata import agent_pb2
from shim.agent import Agent
from shim.cgroup.pod_cgroup import PodCgroup
from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.events import Publish
from shim.log import Log
from shim.oci.guest_spec import guest_spec
from shim.oci.namespaces import Joined
from shim.oci.resources import GuestLimits
from shim.oci.role import container_name
from shim.pod.container_files import ContainerFiles, ContainerVolumes
from shim.pod.hooks import Hooks
from shim.pod.resources import PodResources
from shim.pod.vfio import PodVfio
from shim.pod.vm import PodVm
from shim.pod.volumes import PodVolumes, VolumeMeans
from shim.requests import CreateContainer
from shim.storage.share import Share

REMOVE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where containers are made.

    Args:
        vm: the pod's VM.
        files: the way of files into it.
        resources: makes room in it.
        config: the effective configuration.
        sysctls: the pod's, which an agent of Kata's wants in each container's spec.
        log: the shim's log.
    """

    vm: PodVm
    files: ContainerFiles
    resources: PodResources
    config: Config
    sysctls: Mapping[str, str]
    log: Log


def make_place(
    vm: PodVm,
    share: Share | None,
    config: Config,
    sysctls: Mapping[str, str],
    cgroup: PodCgroup | None,
    publish: Publish,
    means: VolumeMeans,
    log: Log,
) -> Place:
    """Return the place for containers in a VM that was just started.

    Args:
        vm: the VM.
        share: the pod's shared directory; None when it has none.
        config: the effective configuration.
        sysctls: the pod's.
        cgroup: the pod's cgroup on the host.
        publish: takes the pod's events.
        means: what volumes are made with.
        log: the shim's log.
    """
    resources = PodResources(vm, cgroup, config, means.ledger, publish, log)
    volumes = PodVolumes(vm, share, config, means, log)
    vfio = PodVfio(vm, config, log)
    files = ContainerFiles(config, vm, share, volumes, vfio, means.ledger)
    return Place(vm, files, resources, config, sysctls, log)


async def create_in_guest(
    place: Place,
    request: CreateContainer,
    spec: dict[str, Any],
    joined: Joined,
    cleanup: Rollback,
) -> tuple[Hooks, ContainerVolumes]:
    """Make a container whose init waits to be started; returns its hooks and its volumes.

    Args:
        place: where.
        request: what the client asked for.
        spec: the bundle's spec.
        joined: the pod's namespaces that it joins.
        cleanup: the container's rollback stack.

    Raises:
        KatapyError, VmmError, TtrpcError: whatever keeps it from being made.
    """
    vm, config = place.vm, place.config
    storages, rootfs = await place.files.add_rootfs(request, spec, cleanup)
    volumes = await place.files.add_volumes(spec, cleanup)
    hooks = Hooks(
        spec,
        container_id=request.container_id,
        bundle=request.bundle,
        pid=vm.pid,
        log=place.log,
    )
    if "poststop" in hooks:
        cleanup.push("the poststop hooks", hooks.after_stop, timeout=hooks.stop_timeout)
    await hooks.before_create()
    release = partial(place.resources.release, request.container_id)
    cleanup.push("the container's part of the VM", release)
    cpus = await place.resources.admit(request.container_id, spec)
    if place.sysctls and "sysctl" not in vm.agent.features:
        linux = spec.setdefault("linux", {})
        linux["sysctl"] = {**place.sysctls, **linux.get("sysctl", {})}
    guest = guest_spec(
        spec,
        container_id=request.container_id,
        rootfs_path=rootfs,
        mount_sources=volumes.sources,
        devices=volumes.numbers,
        joined_namespaces=joined.paths if "pod-namespaces" in vm.agent.features else {},
        terminal=request.stdio.terminal,
        seccomp=not config.runtime.disable_guest_seccomp,
        network_path=_network_path(vm.agent),
        limits=GuestLimits.of_features(vm.agent.features),
        cpus=cpus,
    )
    cleanup.push("the container in the guest", lambda: _remove_in_guest(vm, request))
    await vm.agent.create_container(
        request.container_id,
        guest,
        storages=[*storages, *volumes.storages],
        devices=volumes.devices,
        shared_pid_namespace=joined.shared_pid,
        shared_mounts=_shared_mounts(config, request, spec),
        timeout=config.runtime.create_container_timeout,
    )
    return hooks, volumes


def _shared_mounts(
    config: Config, request: CreateContainer, spec: Mapping[str, Any]
) -> list[agent_pb2.SharedMount]:
    name = container_name(spec) or request.container_id
    return [
        agent_pb2.SharedMount(**asdict(mount))
        for mount in config.runtime.shared_mounts
        if mount.dst_ctr == name
    ]


async def _remove_in_guest(vm: PodVm, request: CreateContainer) -> None:
    if not vm.gone.is_set() and not vm.hypervisor.exited.is_set():
        await vm.agent.remove_container(request.container_id, REMOVE_TIMEOUT_S)


def _network_path(agent: Agent) -> str | None:
    # Kata's agent fills in the namespaces itself; ours takes the spec as it is.
    return "/proc/1/ns/net" if "oci-json" in agent.features else None
