"""The VM's size follows its containers, and the host gets its memory back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protos.containerd import cgroups_v1_pb2
from tests.support.ctr import Ctr
from tests.support.runtime_processes import vmm_of
from tests.support.task_api import stats, update
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

MIB = 1 << 20
SMALL = """
[hypervisor.qemu]
default_memory = 256
default_maxmemory = 1024
default_maxvcpus = 3
"""
CGROUPS = ("--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro")
POD = "io.kubernetes.cri."


def _annotations(**values: str) -> list[str]:
    words = []
    for name, value in values.items():
        words += ["--annotation", f"{POD}{name.replace('_', '-')}={value}"]
    return words


def _start_pod(ctr: Ctr, config: tuple[str, str], **annotations: str) -> str:
    name = ctr.new_id()
    marks = _annotations(container_type="sandbox", sandbox_id=name, **annotations)
    return ctr.start("sleep", "1000", name=name, options=[*config, *marks])


def _start_member(ctr: Ctr, config: tuple[str, str], pod: str, *options: str) -> str:
    marks = _annotations(container_type="container", sandbox_id=pod)
    return ctr.start("sleep", "1000", options=[*config, *marks, *CGROUPS, *options])


def _seen(ctr: Ctr, container: str) -> tuple[int, int]:
    """CPUs and MiB of memory that a process in the guest sees."""
    text = ctr.exec(container, "sh", "-c", "nproc; grep MemTotal /proc/meminfo").text.split()
    return int(text[0]), int(text[2]) // 1024


def _limit(ctr: Ctr, container: str, file: str) -> str:
    script = f"cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/{file}"
    return ctr.exec(container, "sh", "-c", script).text


def _status(pid: int, field: str) -> int:
    """A field of /proc/<pid>/status in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) // 1024
    raise AssertionError(f"no {field}")


def test_pod_grows_and_shrinks(ctr: Ctr, configured: Callable[[str], tuple[str, str]]) -> None:
    config = configured(SMALL)
    sandbox = _start_pod(ctr, config)
    pod = _start_member(ctr, config, sandbox, "--cpu-shares", "2")  # asks for nothing
    cpus, memory = _seen(ctr, pod)
    assert cpus == 1
    assert 150 < memory <= 256
    member = _start_member(ctr, config, sandbox, "--cpus", "1.5", "--memory-limit", str(300 * MIB))
    cpus, grown = _seen(ctr, pod)
    assert cpus == 2
    assert grown - memory == pytest.approx((300 + 96) * 64 / 63 - 256, abs=4)
    assert _limit(ctr, member, "memory.max") == str(300 * MIB)
    assert _limit(ctr, member, "cpu.max") == "150000 100000"

    update(ctr, member, {"cpu": {"quota": 250_000}, "memory": {"limit": 600 * MIB}})
    cpus, larger = _seen(ctr, pod)
    assert cpus == 3
    assert larger - grown == pytest.approx(300 * 64 / 63, abs=4)
    assert _limit(ctr, member, "memory.max") == str(600 * MIB)
    assert _limit(ctr, member, "cpu.max") == "250000 100000"

    # Over the maximum: as much as there may be.
    update(ctr, member, {"memory": {"limit": 4096 * MIB}})
    assert _seen(ctr, pod)[1] - memory == pytest.approx(1024 - 256, abs=4)

    update(ctr, member, {"cpu": {"quota": 50_000}, "memory": {"limit": 200 * MIB}})
    assert _limit(ctr, member, "cpu.max") == "50000 100000"
    assert _limit(ctr, member, "memory.max") == str(200 * MIB)
    eventually(lambda: _seen(ctr, pod)[1] < larger - 200, "memory to be given back", timeout=40)

    update(ctr, member, {"memory": {"limit": 400 * MIB}})
    before = _seen(ctr, pod)[1]
    ctr.ok("tasks", "delete", "--force", member)
    eventually(lambda: _seen(ctr, pod)[1] < before - 100, "memory to be given back", timeout=20)


def test_sized_at_the_start_and_freed_memory_goes_back(
    ctr: Ctr, configured: Callable[[str], tuple[str, str]]
) -> None:
    config = configured(SMALL)
    asked = {"cpu_quota": "200000", "cpu_period": "100000", "memory": str(450 * MIB)}
    sandbox = _start_pod(ctr, config, **{f"sandbox_{key}": value for key, value in asked.items()})
    vmm = vmm_of(ctr, sandbox)
    pod = _start_member(ctr, config, sandbox)
    assert "-smp cpus=2,maxcpus=3" in vmm.command
    cpus, memory = _seen(ctr, pod)
    assert cpus == 2
    assert 450 < memory < 560
    before = _status(vmm.pid, "VmRSS")
    assert ctr.exec(pod, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1").code == 0
    assert _status(vmm.pid, "VmHWM") > before + 150
    eventually(
        lambda: _status(vmm.pid, "VmRSS") < before + 60, "memory to go back to the host", timeout=30
    )


def test_swap_space(ctr: Ctr, configured: Callable[[str], tuple[str, str]], tmp_path: Path) -> None:
    files = tmp_path / "swap"
    config = configured(f"""{SMALL}
enable_guest_swap = true
guest_swap_path = "{files}"
guest_swap_size_percent = 50
guest_swap_create_threshold_secs = 1
""")
    marks = []
    for key, value in (("swappiness", "60"), ("swap_in_bytes", str(128 * MIB))):
        marks += ["--annotation", f"io.katacontainers.container.resource.{key}={value}"]
    limit = ["--memory-limit", str(64 * MIB)]
    name = ctr.start("sleep", "1000", options=[*config, *CGROUPS, *limit, *marks])
    assert _limit(ctr, name, "memory.swap.max") == str(64 * MIB)
    # One buffer of more than the container's memory.
    assert ctr.exec(name, "dd", "if=/dev/zero", "of=/dev/null", "bs=90M", "count=1").code == 0

    def all_of_it() -> bool:
        _, *rows = ctr.exec(name, "cat", "/proc/swaps").text.splitlines()
        return sum(int(row.split()[2]) for row in rows) // 1024 in (127, 128)

    eventually(all_of_it, "the swap space of the VM", timeout=30)
    assert not list(files.iterdir())


def test_fixed_size(ctr: Ctr, configured: Callable[[str], tuple[str, str]]) -> None:
    config = configured(f"{SMALL}\n[runtime]\nstatic_sandbox_resource_mgmt = true")
    name = ctr.start("sleep", "1000", options=[*config, *CGROUPS, "--cpus", "2"])
    before = _seen(ctr, name)
    assert before[0] == 2
    update(ctr, name, {"cpu": {"quota": 300_000}, "memory": {"limit": 700 * MIB}})
    assert _seen(ctr, name) == before
    assert _limit(ctr, name, "memory.max") == str(700 * MIB)


def test_counters(ctr: Ctr) -> None:
    options = ["--snapshotter", "blockfile", "--memory-limit", str(200 * MIB)]
    name = ctr.start("sleep", "1000", options=options)
    script = "dd if=/dev/zero of=/f bs=1M count=8 conv=fsync; i=0; while [ $i -lt 9999 ]; do"
    assert ctr.exec(name, "sh", "-c", f"{script} i=$((i+1)); done").code == 0
    found = stats(ctr, name)
    assert found.pids.current == 1
    if isinstance(found, cgroups_v1_pb2.Metrics):
        assert found.cpu.usage.total > 10**7
        assert (found.memory.usage.limit, found.memory.usage.usage > 0) == (200 * MIB, True)
        written = [e.value for e in found.blkio.io_service_bytes_recursive if e.op == "Write"]
    else:
        assert found.cpu.usage_usec > 10**4
        assert (found.memory.usage_limit, found.memory.usage > 0) == (200 * MIB, True)
        written = [entry.wbytes for entry in found.io.usage]
    assert sum(written) >= 8 * MIB
