"""Which namespace a pod's VM runs in and what connects it: spec, configuration, DAN file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from shim.cleanup.ledger import Ledger
from shim.cleanup.rollback import Rollback
from shim.config.model import Config
from shim.log import Log
from shim.net.dan import DirectNetwork, load_direct_network
from shim.net.host_proxy import HostProxy
from shim.net.netns import is_hosts, netns_path, new_netns, open_netns, open_netns_at
from shim.net.pod_network import PodNetwork
from shim.net.wiring import allow_host_network, plan_wiring


@dataclass(frozen=True, slots=True)
class _Netns:
    """An open namespace, its path for the ledger, and whether it stands in for the host's."""

    fd: int | None
    path: str = ""
    for_host: bool = False


async def open_network(
    spec: dict[str, Any],
    sandbox_id: str,
    config: Config,
    runtime_dir: Path,
    *,
    ledger: Ledger,
    cleanup: Rollback,
    log: Log,
) -> tuple[int | None, PodNetwork | None]:
    """Open the network of a pod; nothing is connected yet.

    Args:
        spec: the OCI spec of the pod's first container.
        sandbox_id: the pod's id.
        config: the effective configuration.
        runtime_dir: existing directory for a helper's socket.
        ledger: takes what is made before it is.
        cleanup: the pod's rollback stack.
        log: the shim's log.

    Returns:
        The namespace the VMM is to run in, as a descriptor the caller closes, None for the
        host's; and the pod's network, None when it has none.

    Raises:
        ConfigError: settings that exclude each other, or a malformed DAN file.
        InvalidArgument: the spec's path is no network namespace.
        Unimplemented: the pod asks for the host's network, and such pods are refused.
    """
    wiring = plan_wiring(config)
    direct = await trio.to_thread.run_sync(load_direct_network, config.runtime.dan_conf, sandbox_id)
    netns = await _open(spec, config, direct, log)
    if netns.fd is None or wiring.model == "none":
        return netns.fd, None
    proxy = None
    if netns.for_host:
        program = config.katapy.slirp4netns
        proxy = HostProxy(program, runtime_dir, ledger=ledger, cleanup=cleanup, log=log)
    network = PodNetwork(
        netns.fd,
        netns.path,
        wiring=wiring,
        proxy=proxy,
        direct=direct,
        ledger=ledger,
        cleanup=cleanup,
        log=log,
    )
    return netns.fd, network


async def _open(
    spec: dict[str, Any], config: Config, direct: DirectNetwork | None, log: Log
) -> _Netns:
    if direct is not None and direct.netns:
        return _Netns(await trio.to_thread.run_sync(open_netns_at, direct.netns), direct.netns)
    if config.runtime.disable_new_netns:
        return _Netns(None)
    fd = await trio.to_thread.run_sync(open_netns, spec)
    if fd is not None:
        if not is_hosts(fd):
            return _Netns(fd, netns_path(spec))
        os.close(fd)
    log.warning(allow_host_network(config))
    if config.katapy.host_network == "proxy":
        return _Netns(await trio.to_thread.run_sync(new_netns), for_host=True)
    return _Netns(None)
