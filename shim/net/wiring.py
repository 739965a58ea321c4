"""From configuration to how a pod's links are connected."""

from __future__ import annotations

import os
from typing import cast

from shim.config.hypervisors import Qemu, SharingHypervisor
from shim.config.model import Config
from shim.errors import ConfigError, Unimplemented
from shim.net.endpoint import Model, Wiring

VHOST_NET = "/dev/vhost-net"
_NO_PORT = "no-port"


def plan_wiring(config: Config) -> Wiring:
    """Decide how the links of a pod with a network of its own are connected.

    Raises:
        ConfigError: settings that exclude each other.
    """
    model = config.runtime.internetworking_model
    if config.runtime.disable_new_netns and model != "none":
        raise ConfigError(
            "[runtime] disable_new_netns = true leaves the VM in the host's network, whose "
            f"links must not be taken: it needs internetworking_model = 'none', not '{model}'"
        )
    vm = config.hypervisor
    if model == "macvtap" and vm.rx_rate_limiter_max_rate:
        raise ConfigError(
            f"[{vm.section}] rx_rate_limiter_max_rate needs [runtime] internetworking_model = "
            "'tcfilter': what a macvtap takes in passes no queue of the host's"
        )
    queues, vhost = 1, False
    if isinstance(vm, Qemu):
        queues = vm.network_queues
        vhost = not vm.disable_vhost_net and os.access(VHOST_NET, os.R_OK | os.W_OK)
    return Wiring(
        model=cast(Model, model),
        queues=queues,
        vhost=vhost,
        rx_rate=vm.rx_rate_limiter_max_rate,
        tx_rate=vm.tx_rate_limiter_max_rate,
        open_taps=vm.takes_open_taps,
        cold_functions=isinstance(vm, SharingHypervisor) and vm.cold_plug_vfio != _NO_PORT,
        hot_functions=isinstance(vm, SharingHypervisor) and vm.hot_plug_vfio != _NO_PORT,
    )


def allow_host_network(config: Config) -> str:
    """Say what a pod that asks for the host's network gets instead; a line for the log.

    Raises:
        Unimplemented: the configuration refuses such pods.
    """
    match config.katapy.host_network:
        case "refuse":
            raise Unimplemented(
                "this pod asks for the host's network, which a VM can't be in; with [katapy] "
                "host_network = 'none' such pods run without a network, with 'proxy' they "
                "reach it through slirp4netns"
            )
        case "proxy":
            return "this pod asks for the host's network and reaches it through slirp4netns"
        case _:
            return "this pod asks for the host's network and runs without one"
