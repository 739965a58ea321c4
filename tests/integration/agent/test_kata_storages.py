"""Storages that only Kata's own shims send."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from protos.kata.agent_pb2 import CreateContainerRequest, Storage
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest, oci_spec

pytestmark = pytest.mark.root
SHARED = "/run/kata-containers/shared/containers"


def mounts(agent: AgentProcess) -> str:
    return Path(f"/proc/{agent.pid}/mounts").read_text()


@contextmanager
def loop_device(image: Path, *options: str) -> Iterator[str]:
    command = ["losetup", "--show", "-f", *options, str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    try:
        yield done.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


@pytest.fixture
def disks(agent: AgentProcess, tmp_path: Path) -> Iterator[list[str]]:
    """A disk for changes, a layer over the base, and the base, as devices."""
    (tmp_path / "top").mkdir()
    (tmp_path / "top/added").write_text("by the layer")
    images = [tmp_path / name for name in ("changes.ext4", "top.erofs", "base.erofs")]
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", images[0], "8M"], check=True)
    for image, tree in zip(images[1:], (str(tmp_path / "top"), agent.rootfs), strict=True):
        subprocess.run(["mkfs.erofs", "--quiet", image, tree], check=True, stdout=-3)
    with ExitStack() as stack:
        yield [
            stack.enter_context(loop_device(image, *["-r"] * (image.suffix == ".erofs")))
            for image in images
        ]


async def test_layers_make_a_root(agent: AgentProcess, guest: Guest, disks: list[str]) -> None:
    root = "/run/kata-containers/k-layers/rootfs"
    storages = [
        Storage(
            driver="blk",
            source=disk,
            fstype="erofs" if index else "ext4",
            options=["X-kata.multi-layer=true", f"X-kata.overlay-{'lower' if index else 'upper'}"],
            mount_point=root,
        )
        for index, disk in enumerate(disks)
    ]
    spec = oci_spec(root, ["sh", "-c", "cat /added && echo new >/added && cat /added"])
    config = json.dumps(spec).encode()
    for expected in (b"by the layernew\n", b"new\nnew\n"):  # the second one finds the change
        request = CreateContainerRequest(
            container_id="k-layers", storages=storages, oci_spec_json=config
        )
        await guest.agent.CreateContainer(request, timeout=LIMIT)
        await guest.start("k-layers")
        assert await guest.finish("k-layers") == (0, expected, b"")
        await guest.remove("k-layers")
        assert "k-layers" not in mounts(agent)


async def test_a_watched_volume_is_followed(agent: AgentProcess, guest: Guest) -> None:
    source = agent.root / "shared/containers/config"
    source.mkdir(parents=True)
    (source / "key").write_text("one")
    storage = Storage(
        driver="watchable-bind",
        source=f"{SHARED}/config",
        fstype="bind",
        options=["bind"],
        mount_point=f"{SHARED}/watchable/k-config",
    )
    script = "cat /c/key; until grep -q two /c/key; do sleep 0.1; done; cat /c/key"
    spec = oci_spec(guest.rootfs, ["sh", "-c", script])
    spec["mounts"].append(
        {
            "destination": "/c",
            "type": "bind",
            "source": storage.mount_point,
            "options": ["rbind", "ro"],
        }
    )
    request = CreateContainerRequest(
        container_id="k-watch", storages=[storage], oci_spec_json=json.dumps(spec).encode()
    )
    await guest.agent.CreateContainer(request, timeout=LIMIT)
    await guest.start("k-watch")
    streams = guest.streams("k-watch")
    await streams.attach()
    with trio.fail_after(LIMIT):
        await streams.until(b"one")
        (source / "new").write_text("two")
        os.rename(source / "new", source / "key")
        await streams.read_all()
    assert (await guest.wait("k-watch"), bytes(streams.output[2])) == (0, b"onetwo")
    copy = Path(f"/proc/{agent.pid}/root{storage.mount_point}")
    assert copy.exists()
    await guest.remove("k-watch")
    assert not copy.exists()
