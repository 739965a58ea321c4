"""Each part that can die under a container: what its client sees, and that nothing stays."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ctr import Ctr
from tests.support.events import Events
from tests.support.halting_kernel import write_halting_kernel
from tests.support.runtime_processes import helpers, kill_process, shim_of, vmm_of

pytestmark = [pytest.mark.root, pytest.mark.vm]

VM_LOST = 255
"""Exit status of a container whose VM is gone: nobody knows the process's own."""

SHIM_LOST = 137
"""Exit status that the shim's ``delete`` reports for a container it has killed."""

NO_FIFOS = ("--null-io",)
"""Once the task is gone no client knows the FIFOs any more that one that left has made."""

DEATH_TIMEOUT = 15.0


def _assert_ended(ctr: Ctr, events: Events, name: str, status: int) -> None:
    events.wait_for(name, "/tasks/exit", timeout=DEATH_TIMEOUT, id=name, exit_status=status)
    exits = [event for event in events.of(name) if event.topic == "/tasks/exit"]
    assert [event.content["id"] for event in exits].count(name) == 1
    assert ctr.status(name) in {"STOPPED", ""}


@pytest.mark.core
def test_vmm_killed(ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000")
    kill_process(vmm_of(ctr, name))
    _assert_ended(ctr, events, name, VM_LOST)


def test_client_in_the_foreground_sees_the_vmm_die(ctr: Ctr) -> None:
    name = ctr.new_id()
    argv = ctr.run_command(name, "sh", "-c", "echo ready; sleep 1000")
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        kill_process(vmm_of(ctr, name))
        assert client.wait(DEATH_TIMEOUT) == VM_LOST
    assert ctr.exec(name, "true").code != 0


def test_guest_panic(ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000", options=["--privileged"])
    output = ctr.exec(name, "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert output.code != 0
    _assert_ended(ctr, events, name, VM_LOST)


def test_agent_killed(ctr: Ctr, events: Events, plain_rootfs: Path, tmp_path: Path) -> None:
    # The kernel lets no signal through to a namespace's first process from inside it. So
    # a container in the guest's own pid namespace overwrites the agent's code.
    script = (
        "start=`grep -m1 r-xp /proc/1/maps | cut -d- -f1`; "
        "dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$((0x$start / 4096)) count=400 conv=notrunc;"
        "sleep 1000"
    )
    spec = json.loads(ctr.ok("oci", "spec").stdout)
    spec["root"] = {"path": str(plain_rootfs)}
    spec["process"]["env"] = ["PATH=/bin"]
    spec["process"]["args"] = ["sh", "-c", script]
    for kind in ("bounding", "effective", "permitted"):
        spec["process"]["capabilities"][kind] += ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]
    linux = spec["linux"]
    linux["namespaces"] = [item for item in linux["namespaces"] if item["type"] != "pid"]
    linux["maskedPaths"] = linux["readonlyPaths"] = []
    config = tmp_path / "spec.json"
    config.write_text(json.dumps(spec))
    name = ctr.new_id()
    argv = ctr.command("run", "--detach", "--runtime", ctr.runtime, "--config", config, name)
    Ctr.expect_ok(Ctr.finish(argv, timeout=90), argv)
    _assert_ended(ctr, events, name, VM_LOST)


def test_virtiofsd_killed(
    ctr: Ctr, events: Events, configured: Callable[[str], tuple[str, str]]
) -> None:
    options = configured('[hypervisor.qemu]\nshared_fs = "virtio-fs"')
    name = ctr.start("sleep", "1000", options=options)
    kill_process(helpers("virtiofsd")[0])
    _assert_ended(ctr, events, name, VM_LOST)


@pytest.mark.core
def test_shim_killed(ctr: Ctr, events: Events) -> None:
    name = ctr.start("sleep", "1000", options=NO_FIFOS)
    kill_process(shim_of(ctr, name))
    _assert_ended(ctr, events, name, SHIM_LOST)


def test_shim_killed_while_containerd_is_away(ctr: Ctr) -> None:
    name = ctr.start("sleep", "1000", options=NO_FIFOS)
    shim = shim_of(ctr, name)
    ctr.daemon.stop()
    kill_process(shim)
    ctr.daemon.start()
    assert ctr.status(name) == ""


def test_guest_that_cannot_boot(
    ctr: Ctr, events: Events, configured: Callable[[str], tuple[str, str]]
) -> None:
    options = configured('[hypervisor.qemu]\nkernel_params = "rdinit=/nonexistent"')
    name = ctr.new_id()
    output = ctr.run("true", name=name, options=options)
    assert output.code != 0
    assert "panic" in output.error.lower(), output.error
    assert "start" not in events.topics(name)


def test_start_timeout(
    ctr: Ctr, configured: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    kernel = write_halting_kernel(tmp_path / "kernel")
    options = configured(f'[hypervisor.qemu]\nkernel = "{kernel}"\n[agent.kata]\ndial_timeout = 1')
    output = ctr.run("true", options=options)
    assert output.code != 0
    assert "did not answer within 1 s" in output.error, output.error
