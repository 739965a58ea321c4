"""The memory of a guest whose kernel panicked, as an ELF core file for ``crash(8)``.

Source: QMP ``dump-guest-memory``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from vmm.errors import VmmError

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.qemu.qmp import QmpClient

logger = logging.getLogger(__name__)

TIMEOUT_S = 300.0


async def dump_memory(qmp: QmpClient, directory: Path, name: str) -> None:
    """Write the core file; a failure is logged, as the VM has ended anyway.

    Args:
        qmp: control connection.
        directory: where it goes.
        name: the VM's, which the file is named for.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = directory / f"vmcore-{name.replace('/', '_')}-{stamp}.elf"
    arguments = {"paging": False, "protocol": f"file:{path}"}
    try:
        await qmp.execute("dump-guest-memory", arguments, timeout=TIMEOUT_S)
    except VmmError as error:
        path.unlink(missing_ok=True)
        logger.error("the panicked guest's memory is not saved: %s", error)
