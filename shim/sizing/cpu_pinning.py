"""Ties the vCPUs of a VM to host CPUs, one to one, when there are as many of both.

A pod whose containers have CPUs of their own on the host (Kubernetes' static CPU manager)
then has them for its vCPUs too. Otherwise the threads run wherever the pod may.

Source: Kata's design document vcpu-threads-pinning.md.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from shim.log import Log


class CpuPinning:
    """The pinning of one VM's vCPUs.

    Args:
        log: where it is told.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._pinned = False

    def apply(self, threads: Iterable[int], cpus: Collection[int]) -> None:
        """Pin, or let go again.

        Args:
            threads: host threads of the vCPUs, in their order.
            cpus: host CPUs that the pod's containers are bound to.
        """
        threads = list(threads)
        if cpus and len(cpus) == len(threads):
            pairs = [(thread, {cpu}) for thread, cpu in zip(threads, sorted(cpus), strict=True)]
        elif self._pinned:
            everywhere = set(range(os.cpu_count() or 1))  # the pod's cgroup narrows it down
            pairs = [(thread, everywhere) for thread in threads]
        else:
            return
        try:
            for thread, where in pairs:
                os.sched_setaffinity(thread, where)
        except OSError as error:  # a CPU that is not the pod's, or a thread that ended
            self._log.warning(f"vCPUs are not pinned to CPUs {sorted(cpus)}: {error.strerror}")
            return
        self._pinned = len(cpus) == len(threads)
        self._log.info(f"vCPUs are pinned to CPUs {sorted(cpus)}" if self._pinned else "unpinned")
