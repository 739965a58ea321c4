"""The serving process of a pod: builds the objects, owns the root nursery, ends in order."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protos.containerd import (
    sandbox_pb2,
    streaming_pb2,
    task_v2_pb2,
    task_v3_pb2,
    transfer_service_pb2,
)
from protos.katapy import shim_pb2
from shim import translate
from shim.backends import load_backends
from shim.cleanup import ledger as ledgers
from shim.cleanup import sweeper
from shim.cleanup.orphans import reap_orphans
from shim.config.load import load_config
from shim.config.model import Config
from shim.console_service import ConsoleService
from shim.errors import ConfigError
from shim.events import Event, TaskOOM
from shim.log import DEBUG, Log, open_fifo
from shim.management.endpoint import ManagementEndpoint, Serve, socket_path
from shim.packet_filter_service import PacketFilterService
from shim.pod.declarable_sandbox import DeclarableSandbox
from shim.pod.direct_volumes import DirectVolumes
from shim.pod.sandbox import Sandbox
from shim.publisher import Publisher
from shim.sandbox_service import SandboxService
from shim.stages import Stages
from shim.stdio.streaming import Streams
from shim.storage.private import enter_private_mount_namespace
from shim.task_service import TaskService
from shim.transfer_service import TransferService
from shim.ttrpc.server import Server
from shim.ttrpc.service import Handler, Service, build_service
from shim.volume_service import VolumeService

if TYPE_CHECKING:
    from shim.context import ShimContext

DRAIN_TIMEOUT_S = 5.0
OOM_FILE = "oom"  # Kata's name
# Those whose calls the metrics tell of.
_TOLD_SERVICES = (
    "containerd.task.v2.Task",
    "containerd.task.v3.Task",
    "containerd.runtime.sandbox.v1.Sandbox",
)


def main(context: ShimContext) -> None:
    """Serve a pod until a client shuts the shim down or a signal ends it.

    Args:
        context: what ``start`` knew.
    """
    # Mounts of the pod are nobody else's business, and go with the last process that
    # is in here; those of the host still arrive.
    enter_private_mount_namespace()
    trio.run(_serve, context, strict_exception_groups=True)


async def _serve(context: ShimContext) -> None:
    log = context.log
    ledger = ledgers.Ledger.create(context.state_dir, context.namespace, context.group_id)
    if ledger.entries():
        left = sweeper.sweep(ledger, log.warning)
        log.warning(f"a former shim of {context.group_id} left things; {len(left)} remain")
    publisher = Publisher(
        context.namespace,
        log,
        ttrpc_address=context.ttrpc_address,
        grpc_address=context.grpc_address,
        publish_binary=context.publish_binary,
    )
    ending = trio.Event()

    def publish(event: Event) -> None:
        publisher.publish(*translate.event(event))
        if isinstance(event, TaskOOM) and not publisher.has_receiver:
            mark_oom(sandbox, event.container_id, log)

    # A shim that cannot read its configuration still serves, so that the client of
    # Create gets the reason as its answer.
    config, refusal = Config(), None
    backends = load_backends(config)
    try:
        config = load_config(context.options)
        backends = load_backends(config)
    except ConfigError as err:
        refusal = err
    if config.runtime.enable_debug:
        log.level = min(log.level, DEBUG)
    for warning in config.warnings:
        log.warning(warning)
    direct = DirectVolumes(context.group_id, context.socket_path)
    streams = Streams()

    def load_management() -> Serve:
        from shim.management.routes import Routes  # few pods are ever asked
        from shim.monitoring.pod_metrics import PodMetrics

        told = [s for s in services if s.name in _TOLD_SERVICES]
        return Routes(sandbox, direct, PodMetrics(sandbox, told, log)).server().serve_connection

    management = ManagementEndpoint(
        socket_path(context.state_dir, context.namespace, context.group_id),
        ledger,
        load_management,
        log,
    )
    sandbox = DeclarableSandbox(
        namespace=context.namespace,
        sandbox_id=context.group_id,
        config=config,
        ledger=ledger,
        runtime_dir=Path(
            ledgers.runtime_dir(context.state_dir, context.namespace, context.group_id)
        ),
        backends=backends,
        publish=publish,
        log=log,
        refusal=refusal,
        direct=direct,
        streams=streams,
        stages=Stages({name: micros * 1000 for name, micros in context.stamps.items()}),
        on_start=management.open,
    )

    async def shutdown() -> None:
        await shut_down(sandbox, publisher, ending)

    services = [
        *_services(TaskService(sandbox, shutdown)),
        _sandbox_service(SandboxService(sandbox, shutdown)),
        _volume_service(VolumeService(direct)),
        _packet_filter_service(PacketFilterService(sandbox)),
        _streaming_service(streams),
        _transfer_service(TransferService(sandbox, streams)),
        _console_service(ConsoleService(sandbox)),
    ]
    server = Server(services, map_error=translate.error)

    listener = trio.socket.from_stdlib_socket(socket.socket(fileno=context.listener_fd))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        nursery.start_soon(publisher.run)
        nursery.start_soon(_handle_signals, ending, context.log_fifo)
        await nursery.start(sandbox.run)
        nursery.start_soon(server.serve, listener)
        await ending.wait()
        streams.close()
        await server.drain(DRAIN_TIMEOUT_S)
        await sandbox.stop()
        await publisher.drain(DRAIN_TIMEOUT_S)
        nursery.cancel_scope.cancel()
    if not ledger.close():
        log.error(f"things are left; see {ledger.path} and `katapy cleanup`")


def mark_oom(sandbox: Sandbox, container_id: str, log: Log) -> None:
    """Leave the file in a container's bundle by which CRI-O learns of an OOM kill."""
    container = sandbox.containers.get(container_id)
    if container is not None:
        try:
            Path(container.bundle, OOM_FILE).touch()
        except OSError as err:
            log.warning(f"no OOM file for {container_id}: {err}")


async def shut_down(sandbox: Sandbox, publisher: Publisher, ending: trio.Event) -> None:
    """End the pod and then the shim, whether or not the client waits for the end."""
    try:
        await sandbox.stop()
        await publisher.drain(DRAIN_TIMEOUT_S)
    finally:
        ending.set()


def _sandbox_service(sandbox: SandboxService) -> Service:
    handlers: dict[str, Handler] = {
        "CreateSandbox": sandbox.create,
        "StartSandbox": sandbox.start,
        "Platform": sandbox.platform,
        "StopSandbox": sandbox.stop,
        "WaitSandbox": sandbox.wait,
        "SandboxStatus": sandbox.status,
        "PingSandbox": sandbox.ping,
        "ShutdownSandbox": sandbox.shutdown,
        "SandboxMetrics": sandbox.metrics,
    }
    return build_service(
        sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"],
        handlers,
        cancel_on_disconnect={"WaitSandbox"},
    )


def _services(task: TaskService) -> list[Service]:
    handlers: dict[str, Handler] = {
        "Create": task.create,
        "Start": task.start,
        "State": task.state,
        "Delete": task.delete,
        "Pids": task.pids,
        "Pause": task.pause,
        "Resume": task.resume,
        "Checkpoint": task.checkpoint,
        "Kill": task.kill,
        "Exec": task.exec,
        "ResizePty": task.resize_pty,
        "CloseIO": task.close_io,
        "Update": task.update,
        "Wait": task.wait,
        "Stats": task.stats,
        "Connect": task.connect,
        "Shutdown": task.shutdown,
    }
    return [
        build_service(
            module.DESCRIPTOR.services_by_name["Task"], handlers, cancel_on_disconnect={"Wait"}
        )
        for module in (task_v2_pb2, task_v3_pb2)
    ]


def _volume_service(volumes: VolumeService) -> Service:
    descriptor = shim_pb2.DESCRIPTOR.services_by_name["Volumes"]
    return build_service(descriptor, {"Stats": volumes.stats, "Resize": volumes.resize})


def _packet_filter_service(rules: PacketFilterService) -> Service:
    descriptor = shim_pb2.DESCRIPTOR.services_by_name["PacketFilter"]
    return build_service(descriptor, {"Get": rules.get, "Set": rules.set})


def _streaming_service(streams: Streams) -> Service:
    descriptor = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]
    return build_service(descriptor, {"Stream": streams.serve})


def _transfer_service(transfers: TransferService) -> Service:
    descriptor = transfer_service_pb2.DESCRIPTOR.services_by_name["Transfer"]
    return build_service(
        descriptor, {"Transfer": transfers.transfer}, cancel_on_disconnect={"Transfer"}
    )


def _console_service(console: ConsoleService) -> Service:
    descriptor = shim_pb2.DESCRIPTOR.services_by_name["Console"]
    return build_service(descriptor, {"Open": console.open}, cancel_on_disconnect={"Open"})


async def _handle_signals(ending: trio.Event, log_fifo: str) -> None:
    """End on SIGTERM and SIGINT; write every thread's stack into the log on SIGUSR1."""
    stacks = open_fifo(log_fifo)
    if stacks < 0:
        stacks = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            ending.set()
