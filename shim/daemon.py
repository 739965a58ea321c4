"""The serving process of a pod: builds the objects, owns the root nursery, ends in order.

With shim/prelaunch.py and the CLI all that names a concrete VM backend.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protos.containerd import task_v2_pb2, task_v3_pb2
from shim import ledger as ledgers
from shim import translate
from shim.config.load import load_config
from shim.config.model import Config
from shim.errors import ConfigError
from shim.events import Event
from shim.pod_builder import Backends
from shim.pod_vm import Helper
from shim.prelaunched import Prelaunched
from shim.publisher import Publisher
from shim.sandbox import Sandbox
from shim.stages import Stages
from shim.sweeper import open_ledger
from shim.task_service import TaskService
from shim.ttrpc.server import Server
from shim.ttrpc.service import Handler, Service, build_service
from vmm.qemu.qemu import QemuHypervisor
from vmm.virtiofsd import ShareOptions, run_virtiofsd

if TYPE_CHECKING:
    from shim.context import ShimContext
    from shim.vm_plan import VmPlan
    from vmm.hypervisor import Hypervisor, Recorder
    from vmm.spec import VmSpec

DRAIN_TIMEOUT_S = 5.0


def main(context: ShimContext) -> None:
    """Serve a pod until a client shuts the shim down or a signal ends it.

    Args:
        context: what ``start`` knew.
    """
    trio.run(_serve, context, strict_exception_groups=True)


async def _serve(context: ShimContext) -> None:
    log = context.log
    ledger = context.ledger or open_ledger(context)
    ahead = context.prelaunched
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

    # A shim that cannot read its configuration still serves, so that the client of
    # Create gets the reason as its answer.
    config, refusal = Config(), None
    try:
        config = ahead.config if ahead else load_config(context.options)
    except ConfigError as err:
        refusal = err
    for warning in config.warnings:
        log.warning(warning)
    sandbox = Sandbox(
        namespace=context.namespace,
        sandbox_id=context.group_id,
        config=config,
        ledger=ledger,
        runtime_dir=Path(
            ledgers.runtime_dir(context.state_dir, context.namespace, context.group_id)
        ),
        backends=Backends(
            hypervisor=partial(_make_qemu, ahead),
            virtiofsd=partial(_make_virtiofsd, ahead),
            ahead=ahead,
        ),
        publish=publish,
        log=log,
        refusal=refusal,
        stages=Stages({name: micros * 1000 for name, micros in context.stamps.items()}),
    )

    async def shutdown() -> None:
        await sandbox.stop()
        await publisher.drain(DRAIN_TIMEOUT_S)
        ending.set()

    server = Server(_services(TaskService(sandbox, shutdown)), map_error=translate.error)
    listener = trio.socket.from_stdlib_socket(socket.socket(fileno=context.listener_fd))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        nursery.start_soon(_handle_signals, ending, log.info)
        await nursery.start(sandbox.run)
        nursery.start_soon(server.serve, listener)
        await ending.wait()
        await server.drain(DRAIN_TIMEOUT_S)
        await sandbox.stop()
        await publisher.drain(DRAIN_TIMEOUT_S)
        nursery.cancel_scope.cancel()
    if ahead is not None:
        ahead.discard(log.warning)
    if not ledger.close():
        log.error(f"things are left; see {ledger.path} and `katapy cleanup`")


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


def _make_qemu(
    ahead: Prelaunched | None, spec: VmSpec, config: Config, record: Recorder
) -> Hypervisor:
    return QemuHypervisor(
        spec,
        binary=config.hypervisor.path or "",
        cache_dir=config.katapy.cache_dir,
        record=record,
        launched=ahead.take_vmm(spec) if ahead else None,
    )


def _make_virtiofsd(
    ahead: Prelaunched | None, plan: VmPlan, config: Config, record: Recorder
) -> AbstractAsyncContextManager[Helper]:
    cache = {"metadata": "auto"}.get(
        config.hypervisor.virtio_fs_cache, config.hypervisor.virtio_fs_cache
    )

    @asynccontextmanager
    async def run() -> AsyncIterator[Helper]:
        async with run_virtiofsd(
            plan.share_dir,
            plan.virtiofsd_socket,
            binary=config.hypervisor.virtio_fs_daemon or "",
            options=ShareOptions(cache=cache),  # type: ignore[arg-type]
            record=record,
            listener=ahead.take_listener() if ahead else None,
        ) as process:
            yield process

    return run()


async def _handle_signals(ending: trio.Event, say: object) -> None:
    """End on SIGTERM and SIGINT; dump every thread's stack on SIGUSR1."""
    path = os.environ.get("KATAPY_STACKS", "/dev/null")
    with open(path, "a", encoding="utf-8") as stacks:  # noqa: ASYNC230 - once, at start
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                ending.set()
