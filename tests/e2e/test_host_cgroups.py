"""The processes of a pod run in its cgroup on the host, and die there in an orderly way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.cgroup.paths import Hierarchies, find_hierarchies
from tests.support.ctr import Ctr
from tests.support.events import Events
from tests.support.runtime_processes import helpers, kill_process, shim_of, vmm_of
from tests.support.task_api import update
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.fixture
def hierarchies() -> Hierarchies:
    return find_hierarchies(Path("/proc/self/mountinfo").read_text())


def _cgroups(pid: int, hierarchies: Hierarchies, task: int = 0) -> set[str]:
    """Where a process (or a thread of it) is, in the hierarchies with controllers."""
    path = f"/proc/{pid}/task/{task}/cgroup" if task else f"/proc/{pid}/cgroup"
    rows = [line.split(":", 2) for line in Path(path).read_text().splitlines()]
    return {row[2] for row in rows if row[1] or hierarchies.version == 2}


def test_everything_is_in_the_pods_cgroup(
    ctr: Ctr, hierarchies: Hierarchies, configured: Callable[[str], tuple[str, str]]
) -> None:
    config = configured('[hypervisor.qemu]\nshared_fs = "virtio-fs"')
    name = ctr.start("sleep", "1000", options=config)
    expected = {f"/{ctr.namespace}/katapy_{name}"}
    assert _cgroups(vmm_of(ctr, name).pid, hierarchies) == expected
    daemons = helpers("virtiofsd")
    assert daemons
    for daemon in daemons:
        assert _cgroups(daemon.pid, hierarchies) == expected
    assert _cgroups(shim_of(ctr, name).pid, hierarchies) != expected


def test_vcpus_apart(
    ctr: Ctr, hierarchies: Hierarchies, configured: Callable[[str], tuple[str, str]]
) -> None:
    if hierarchies.version == 2:
        pytest.skip("version 2 has no such split")
    options = "sandbox_cgroup_only = false\nenable_vcpus_pinning = true"
    config = configured(f"[runtime]\n{options}")
    name = ctr.start("sleep", "1000", options=config)
    vmm = vmm_of(ctr, name).pid
    assert _cgroups(vmm, hierarchies) == {f"/katapy_overhead/{name}"}
    vcpus = [
        int(task)
        for task in os.listdir(f"/proc/{vmm}/task")
        if Path(f"/proc/{vmm}/task/{task}/comm").read_text().startswith("CPU ")
    ]
    assert len(vcpus) == 1
    cpu = max(os.sched_getaffinity(0))
    update(ctr, name, {"cpu": {"cpus": str(cpu)}})
    assert os.sched_getaffinity(vcpus[0]) == {cpu}
    assert _cgroups(vmm, hierarchies, vcpus[0]) == {f"/{ctr.namespace}/katapy_{name}"}


def test_gone_with_a_dead_shim(ctr: Ctr, hierarchies: Hierarchies, events: Events) -> None:
    name = ctr.start("sleep", "1000", options=["--null-io"])
    directories = [Path(f"{root}/{ctr.namespace}/katapy_{name}") for root in hierarchies.roots]
    assert all(path.is_dir() for path in directories)
    kill_process(shim_of(ctr, name))
    events.wait_for(name, "/tasks/exit", timeout=20, exit_status=137)
    eventually(lambda: not any(path.exists() for path in directories), "clean-up", timeout=10)


def test_killed_by_the_hosts_oom_killer(
    ctr: Ctr,
    hierarchies: Hierarchies,
    events: Events,
    configured: Callable[[str], tuple[str, str]],
) -> None:
    config = configured("[hypervisor.qemu]\ndefault_memory = 512")
    name = ctr.start("sleep", "1000", options=[*config, "--null-io"])
    folder = Path(f"{hierarchies.root('memory')}/{ctr.namespace}/katapy_{name}")
    knob = "memory.max" if hierarchies.version == 2 else "memory.limit_in_bytes"
    used = "memory.current" if hierarchies.version == 2 else "memory.usage_in_bytes"
    limit = int((folder / used).read_text()) + (48 << 20)
    (folder / knob).write_text(str(limit))
    assert ctr.exec(name, "dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1").code != 0
    events.wait_for(name, "/tasks/exit", timeout=20, id=name, exit_status=137)
    assert "oom" in events.topics(name)
    assert events.topics(name).index("oom") < events.topics(name).index("exit")
