"""A root file system of an image's layers and a disk for changes, as containerd 2.2 gives it."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from protos.containerd import types_pb2
from shim.storage.rootfs import MAX_LAYERS
from tests.integration.faults.conftest import Shim
from tests.integration.faults.test_create import fails_and_leaves

pytestmark = [pytest.mark.vm, pytest.mark.root]


def layer(folder: Path, name: str, content: Path) -> types_pb2.Mount:
    """An erofs image of a directory."""
    image = folder / f"{name}.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", image, content], check=True, stdout=subprocess.PIPE)
    return types_pb2.Mount(type="erofs", source=str(image), options=["ro", "loop"])


def empty_disk(folder: Path) -> Path:
    """An image with a file system and nothing in it."""
    disk = folder / "changes.ext4"
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", disk, "8M"], check=True)
    return disk


def stack(folder: Path, root: Path, number: int) -> list[types_pb2.Mount]:
    """A disk for changes, ``number`` layers over ``root``, and their overlay."""
    disk = empty_disk(folder)
    changes = types_pb2.Mount(type="ext4", source=str(disk), options=["rw", "loop"])
    layers = []
    for index in reversed(range(number)):
        content = folder / f"layer-{index}"
        (content / "bin").mkdir(parents=True)
        (content / f"file-{index}").write_text("")
        if index == number - 1:  # the topmost hides a file of the lowest
            os.mknod(content / "bin/ar", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
        layers.append(layer(folder, content.name, content))
    layers.append(layer(folder, "base", root))
    overlay = types_pb2.Mount(
        type="format/mkdir/overlay",
        source="overlay",
        options=[
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
            f"lowerdir={{{{ overlay 1 {number + 1} }}}}",
        ],
    )
    return [changes, *layers, overlay]


def ask(shim: Shim, script: str) -> None:
    """Have the next container run a script."""
    config = shim.bundle / "config.json"
    spec = json.loads(config.read_text())
    spec["process"]["args"] = ["/bin/sh", "-ec", script]
    config.write_text(json.dumps(spec))


@pytest.mark.parametrize("number", [2, MAX_LAYERS])
async def test_layers_are_stacked(shim: Shim, tmp_path: Path, number: int) -> None:
    await shim.create()
    await shim.run_to_end()
    before = await shim.steady()
    rootfs = stack(tmp_path, shim.bundle / "rootfs", number)
    # As few as these are disks of the guest; more are stacked by the host.
    steps = ("disk",) if number + 2 <= MAX_LAYERS else ("share mount",)
    for step in (*steps, "volumes", "CreateContainer"):
        await fails_and_leaves(shim, step, before, rootfs=rootfs)
    files = " && ".join(f"test -e /file-{index}" for index in range(number))
    ask(shim, f"{files} && ! test -e /bin/ar && test $(stat -c %a /) = 755 && echo new > /new")
    await shim.create(rootfs=rootfs)
    await shim.run_to_end()
    await shim.settled(before)
    await shim.shut_down()
    # What the container wrote is on its disk.
    command = ["/sbin/debugfs", "-R", "cat /upper/new", str(tmp_path / "changes.ext4")]
    assert (await trio.run_process(command, capture_stdout=True)).stdout == b"new\n"


async def test_what_snapshotters_say_to_kata(shim: Shim, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "top").touch()
    data = empty_disk(tmp_path)
    lower, higher = layer(tmp_path, "base", shim.bundle / "rootfs"), layer(tmp_path, "up", upper)
    words = "erofs,ro,io.katacontainers.fs-opt.block_device=file,io.katacontainers.fs-opt.is-layer"
    layers = [f"io.katacontainers.fs-opt.layer={disk.source},{words}" for disk in (lower, higher)]
    order = ["io.katacontainers.fs-opt.overlay-rw", "lowerdir=up.erofs:base.erofs"]
    image = {"volume_type": "image_raw_block", "source": lower.source, "fs_type": "erofs"}
    encoded = base64.b64encode(json.dumps(image).encode()).decode()

    config = shim.bundle / "config.json"
    spec = json.loads(config.read_text())
    options = ["io.katacontainers.fs-opt.block_device=file", "noatime"]
    spec["mounts"].append(
        {"destination": "/data", "type": "ext4", "source": str(data), "options": options}
    )
    config.write_text(json.dumps(spec))
    for options, script in (
        ([*layers, *order], "test -e /top && echo kept > /data/file"),
        ([f"io.katacontainers.volume={encoded}"], "! test -e /top && grep kept /data/file"),
    ):
        ask(shim, f"{script} && echo new > /bin/ar && grep ' /data ext4' /proc/mounts")
        kata = types_pb2.Mount(type="fuse3.kata-overlay", source="/", options=options)
        await shim.create(rootfs=[kata])
        await shim.run_to_end()
    await shim.shut_down()
    command = ["/sbin/debugfs", "-R", "cat /file", str(data)]
    assert (await trio.run_process(command, capture_stdout=True)).stdout == b"kept\n"
