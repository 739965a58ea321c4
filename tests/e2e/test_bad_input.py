"""Bad input: a clear error at the client, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.lib.busybox import IMAGE_NAME
from deploy.lib.runtime import SHIM, Runtime
from tests.support.ctr import Ctr
from tests.support.events import Events

pytestmark = pytest.mark.root

Configured = Callable[[str], tuple[str, str]]
MAX_ID = 76


@pytest.mark.core
def test_missing_program(ctr: Ctr, events: Events) -> None:
    name = ctr.new_id()
    output = ctr.run("/no/such/program", name=name)
    assert output.code != 0
    assert "/no/such/program" in output.error
    assert "start" not in events.topics(name)


def test_program_that_may_not_be_executed(ctr: Ctr) -> None:
    output = ctr.run("/etc/passwd")
    assert output.code != 0
    assert "/etc/passwd" in output.error


def test_unknown_user(ctr: Ctr) -> None:
    output = ctr.run("id", options=["--user", "nobody-of-that-name"])
    assert output.code != 0
    assert "nobody-of-that-name" in output.error or "no users found" in output.error


def test_user_and_group(ctr: Ctr) -> None:
    assert ctr.run("id", "-u", options=["--user", "1000:2000"]).text == "1000"


@pytest.mark.core
@pytest.mark.parametrize("name", ["with.dots_and-dashes", "0", "x" * MAX_ID])
def test_odd_ids(ctr: Ctr, name: str) -> None:
    output = ctr.run("echo", "fine", name=name)
    assert (output.code, output.text) == (0, "fine"), output.error


@pytest.mark.parametrize("name", ["x" * (MAX_ID + 1), "..", "a/b", "ümlaut"])
def test_bad_ids_are_refused(ctr: Ctr, name: str) -> None:
    assert ctr.run("true", name=name).code != 0


def test_rootfs_that_cannot_be_mounted(ctr: Ctr) -> None:
    name = ctr.new_id()
    create = ("containers", "create", "--runtime", ctr.runtime)
    ctr.ok(*create, IMAGE_NAME, name, "true")
    snapshots = ctr.daemon.folder / "root/io.containerd.snapshotter.v1.overlayfs/snapshots"
    newest = max(snapshots.iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest / "work")
    output = ctr("tasks", "start", name, timeout=60)
    assert output.code != 0
    assert "mount" in output.error
    (newest / "work").mkdir()


@pytest.mark.vm
@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ('[hypervisor.qemu]\nkernel = "/no/such/kernel"', "/no/such/kernel"),
        ('[hypervisor.qemu]\nimage = "/no/such/image"', "/no/such/image"),
        ('[hypervisor.qemu]\ndefault_vcpus = "many"', "default_vcpus"),
        ("[hypervisor.qemu]\ndefault_memory = 1000000000", "memory"),
        ('[hypervisor.qemu]\nmachine_type = "toaster"', "machine_type"),
    ],
)
def test_configuration_that_cannot_work(
    ctr: Ctr, configured: Configured, sections: str, named: str
) -> None:
    output = ctr.run("true", options=configured(sections))
    assert output.code != 0
    assert named in output.error, output.error


@pytest.mark.vm
def test_configuration_that_is_no_toml(ctr: Ctr, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[hypervisor\n")
    output = ctr.run("true", options=["--runtime-config-path", broken])
    assert output.code != 0
    assert "broken.toml" in output.error, output.error


@pytest.mark.vm
def test_missing_configuration(ctr: Ctr) -> None:
    output = ctr.run("true", options=["--runtime-config-path", "/no/such/config.toml"])
    assert output.code != 0
    assert "/no/such/config.toml" in output.error, output.error


@pytest.mark.vm
@pytest.mark.parametrize("text", ["{", "[]", "", '{"process": 3}', "\x00\x01"])
def test_corrupt_bundle(ctr: Ctr, runtime: Runtime, tmp_path: Path, text: str) -> None:
    # No client can make containerd write such a bundle, so the shim is started by hand.
    assert runtime.launcher_dir is not None
    (tmp_path / "config.json").write_text(text)
    name = ctr.new_id()
    done = subprocess.run(
        [
            runtime.launcher_dir / SHIM,
            *("-namespace", ctr.namespace, "-id", name, "-address", ctr.daemon.address),
            *("-publish-binary", ctr.daemon.packages.program("/usr/bin/containerd"), "start"),
        ],
        cwd=tmp_path,
        env={**ctr.daemon.env, "TTRPC_ADDRESS": str(ctr.daemon.folder / "ttrpc.sock")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert "config.json" in done.stdout + done.stderr
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1
