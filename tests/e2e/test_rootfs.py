"""Where a container's root file system can come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ctr import Ctr

pytestmark = pytest.mark.root


@pytest.mark.core
def test_snapshot_can_be_written(ctr: Ctr) -> None:
    script = "echo new >/file && ln /file /link && mkdir /d && mv /link /d/ && cat /d/link"
    output = ctr.run("sh", "-c", script)
    assert (output.code, output.text) == (0, "new"), output.error


def test_snapshot_is_the_containers_own(ctr: Ctr) -> None:
    assert ctr.run("touch", "/trace").code == 0
    assert ctr.run("test", "-e", "/trace").code == 1


def test_read_only(ctr: Ctr) -> None:
    output = ctr.run("touch", "/file", options=["--read-only"])
    assert output.code != 0
    assert "Read-only" in output.error


def test_directory_that_no_snapshotter_knows(ctr: Ctr, plain_rootfs: Path) -> None:
    name = ctr.new_id()
    prefix = ("run", "--rm", "--runtime", ctr.runtime, "--env", "PATH=/bin", "--rootfs")
    output = ctr(*prefix, plain_rootfs, name, "sh", "-c", "echo hi >/left; echo ok", timeout=90)
    assert (output.code, output.text) == (0, "ok"), output.error
    assert (plain_rootfs / "left").read_text() == "hi\n"


@pytest.mark.vm
def test_block_device(ctr: Ctr, image: Path, series: str) -> None:
    if series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    local = ["--local"] if series.startswith("2.") else []
    ctr.ok("images", "import", *local, "--snapshotter", "blockfile", image)
    script = "grep ' / ' /proc/mounts; echo data >/file && cat /file"
    output = ctr.run("sh", "-c", script, options=["--snapshotter", "blockfile"])
    assert output.code == 0, output.error
    mount, text = output.text.splitlines()
    assert mount.startswith("/dev/vd")
    assert " ext4 " in mount
    assert text == "data"
