"""Containers in VMs of Firecracker and Cloud Hypervisor: stand-ins, or real where named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.standins.install import provide
from tests.support.ctr import Ctr
from tests.support.events import Events
from tests.support.processes import process
from tests.support.runtime_processes import kill_process

pytestmark = [pytest.mark.vm, pytest.mark.root]

Configured = Callable[[str], tuple[str, str]]
MIB = 1 << 20
VM_LOST = 255
DEATH_TIMEOUT = 15.0


@pytest.fixture
def options(
    request: pytest.FixtureRequest,
    configured: Configured,
    vhost_device_vsock: Path,
    tmp_path: Path,
    base_ctr: Ctr,
    image: Path,
    series: str,
) -> list[str]:
    """What ``ctr run`` is told for a backend, which the test's parameter names."""
    kind: str = request.param
    name, program = "firecracker", "firecracker"
    if kind == "clh":
        name, program = "clh", "cloud-hypervisor"
    elif series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    found = provide(program, tmp_path, vhost_device_vsock)
    print(f"{program}: {'real' if found.real else 'stand-in'}, {found.path}")
    lines = [f"[hypervisor.{name}]", f'path = "{found.path}"']
    if kind == "firecracker with PCI":
        lines.append("enable_pci = true")
    if kind == "jailed firecracker":
        jailer = provide("jailer", tmp_path, vhost_device_vsock)
        lines.append(f'jailer_path = "{jailer.path}"')
    chosen = list(configured("\n".join(lines)))
    if name == "firecracker":
        # It shares no directories: the root file system is a disk of the snapshotter.
        local = ["--local"] if series.startswith("2.") else []
        base_ctr.ok("images", "import", *local, "--snapshotter", "blockfile", image)
        chosen += ["--snapshotter", "blockfile"]
    return chosen


ALL = ["clh", "firecracker", "jailed firecracker", "firecracker with PCI"]
EACH = ["clh", "firecracker"]


@pytest.mark.parametrize("options", ALL, indirect=True)
def test_run(options: list[str], ctr: Ctr) -> None:
    script = "uname -r; echo out; echo err >&2; exit 7"
    output = ctr.run("sh", "-c", script, options=options)
    assert output.code == 7, output.error
    assert output.text.splitlines()[0] != os.uname().release
    assert output.text.splitlines()[1] == "out"


@pytest.mark.parametrize("options", EACH, indirect=True)
def test_exec_streams_and_kill(options: list[str], ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000", options=options)
    output = ctr.exec(name, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (output.code, output.text, output.error) == (3, "out", "err")
    data = os.urandom(MIB)
    output = ctr.exec(name, "sha256sum", stdin=data)
    assert output.text.split()[0] == hashlib.sha256(data).hexdigest()
    output = ctr.exec(name, "dd", "if=/dev/zero", "bs=1M", "count=64", timeout=120)
    assert len(output.stdout) == 64 * MIB
    ctr.ok("tasks", "kill", "--signal", "SIGKILL", name)
    events.wait_for(name, "/tasks/exit", timeout=DEATH_TIMEOUT, id=name, exit_status=137)


@pytest.mark.parametrize("options", EACH, indirect=True)
def test_the_vmm_dies(options: list[str], ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000", options=options)
    vmm = process(ctr.pid(name))
    assert vmm is not None
    kill_process(vmm)
    events.wait_for(name, "/tasks/exit", timeout=DEATH_TIMEOUT, id=name, exit_status=VM_LOST)
