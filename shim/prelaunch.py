"""Starts the pod's VMM while the shim still imports: the two take about as long.

``start`` has printed its address, Create is on its way, and what it will ask for can be
known from the bundle already. So the child of ``start`` plans the VM, starts QEMU
stopped, and leaves it here for Create to take over. Whatever keeps it from that is no
error: it is undone, and Create starts the VM itself, or says what is wrong.

Standard library only, and one thread: trio is not imported yet.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shim import ledger as ledgers
from shim import sweeper
from shim.config.load import load_config
from shim.oci.spec import load_spec
from shim.prelaunched import Prelaunched
from vmm.qemu.launch import launch

if TYPE_CHECKING:
    from shim.context import ShimContext


def run(context: ShimContext) -> None:
    """Start the VMM of a pod that is about to be created, if that can be; never fails.

    Args:
        context: gets ``ledger``, and ``prelaunched`` when it worked.
    """
    if not os.path.exists(f"{context.bundle}/config.json"):
        return  # a sandbox without a container of its own
    try:
        spec = load_spec(Path(context.bundle))
        if not spec.get("process"):
            return
        config = load_config(context.options)
        ledger = sweeper.open_ledger(context)
    except Exception as error:  # Create will meet the same error and report it
        context.log.debug(f"no VMM ahead of Create: {error}")
        return
    context.ledger = ledger
    ahead = Prelaunched(ledger, config, spec)
    try:
        directory = ledgers.runtime_dir(context.state_dir, context.namespace, context.group_id)
        ahead.start(context.group_id, Path(directory), launch)
    except Exception as error:
        context.log.debug(f"no VMM ahead of Create: {error}")
        ahead.discard(context.log.warning)
    else:
        context.prelaunched = ahead
        context.stamp("prelaunched")
