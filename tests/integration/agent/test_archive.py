"""Copying into and out of real containers, under an agent on the host."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from protos.katapy import extension_pb2
from shim.ttrpc import status
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest, oci_spec

pytestmark = pytest.mark.root

TMPFS = {
    "destination": "/tmp",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["mode=1777", "size=4m"],
}


class Box:
    """A running container with a tmpfs at /tmp, and copies into and out of it."""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest = guest
        self.name = name
        self._count = 0

    async def sh(self, script: str) -> str:
        """Run a script in it that must succeed."""
        self._count += 1
        exec_id = f"sh-{self._count}"
        await self.guest.exec(self.name, exec_id, ["/bin/sh", "-ec", script])
        code, out, err = await self.guest.finish(self.name, exec_id)
        assert code == 0, err
        return out.decode().rstrip("\n")

    async def start(self, path: str, **fields: Any) -> str:
        """Start a copy."""
        self._count += 1
        exec_id = f"copy-{self._count}"
        request = extension_pb2.ArchiveRequest(
            container_id=self.name, exec_id=exec_id, path=path, **fields
        )
        await self.guest.extension.Archive(request, timeout=LIMIT)
        return exec_id

    async def read(self, path: str, **fields: Any) -> tarfile.TarFile:
        """Copy out."""
        code, out, err = await self.guest.finish(self.name, await self.start(path, **fields))
        assert (code, err) == (0, b"")
        return tarfile.open(fileobj=io.BytesIO(out))

    async def write(self, path: str, data: bytes, **fields: Any) -> tuple[int, bytes]:
        """Copy in: exit status and complaint."""
        exec_id = await self.start(path, extract=True, **fields)
        streams = self.guest.streams(self.name, exec_id)
        await streams.attach()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.read_all)
            await streams.write(data)
            await streams.frame(channel=1, eof=True)
        return await self.guest.wait(self.name, exec_id), bytes(streams.output[3])

    async def put(self, path: str, *entries: tuple[str, Any], **fields: Any) -> None:
        """Copy in, which must succeed."""
        assert await self.write(path, archive(*entries), **fields) == (0, b"")


def archive(*entries: tuple[str, Any]) -> bytes:
    """A tar archive of (name, text or fields of the entry, ``text`` among them)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, given in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o644
            fields = {"text": given} if isinstance(given, str) else dict(given)
            content = fields.pop("text", "").encode()
            entry.size = len(content)
            for key, value in fields.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def text(tar: tarfile.TarFile, name: str) -> str:
    """A file's content."""
    file = tar.extractfile(name)
    assert file is not None
    return file.read().decode()


@asynccontextmanager
async def opened(guest: Guest, name: str, **spec: Any) -> AsyncIterator[Box]:
    await guest.create(name, ["sleep", "1000"], **spec)
    await guest.start(name)
    try:
        yield Box(guest, name)
    finally:
        await guest.remove(name)


@pytest.fixture
async def box(guest: Guest) -> AsyncIterator[Box]:
    mounts = [*oci_spec("", [])["mounts"], TMPFS]
    async with opened(guest, f"c-{os.urandom(4).hex()}", mounts=mounts) as box:
        yield box


async def test_a_tree_comes_back_as_it_was(box: Box) -> None:
    given = {"text": "one\n", "mode": 0o751, "uid": 12, "gid": 34}
    again = {"type": tarfile.LNKTYPE, "linkname": "a/f"}
    await box.put("/tmp/t", ("a/f", given), ("g", again), preserve_ownership=True)
    await box.sh("cd /tmp/t; ln -s a/f s; mkfifo p; head -c 3000000 /dev/zero >z")
    tar = await box.read("/tmp/t")
    names = {entry.name: entry for entry in tar}
    assert sorted(names) == ["t", "t/a", "t/a/f", "t/g", "t/p", "t/s", "t/z"]
    assert text(tar, "t/a/f") == "one\n"
    assert (names["t/a/f"].mode, names["t/a/f"].uid, names["t/a/f"].gid) == (0o751, 12, 34)
    assert names["t/g"].linkname == "t/a/f"
    assert names["t/s"].linkname == "a/f"
    assert names["t/z"].size == 3000000
    assert [entry.name for entry in await box.read("/tmp/t", no_walk=True)] == ["t"]
    # The kernel's own file systems are no content.
    assert [e.name for e in await box.read("/") if e.name.startswith("proc")] == ["proc"]


async def test_files_belong_to_root_unless_their_owners_are_kept(box: Box) -> None:
    fields = {"uid": 7, "gid": 8, "mode": 0o4755, "mtime": 1000000}
    show = "stat -c '%u %g %a %Y'"
    await box.put("/tmp/new/dir", ("f", fields), ("d/e", "text"))
    assert await box.sh(f"{show} /tmp/new/dir/f; cat /tmp/new/dir/d/e") == "0 0 755 1000000\ntext"
    await box.put("/tmp/kept", ("f", fields), preserve_ownership=True)
    assert await box.sh(f"{show} /tmp/kept/f") == "7 8 4755 1000000"


async def test_links_lead_nowhere_else(box: Box, agent: AgentProcess) -> None:
    outside = agent.root / "outside"
    outside.write_text("untouched")
    await box.sh(
        f"mkdir /tmp/d /tmp/e; ln -s / /tmp/d/up; ln -s {outside} /tmp/d/f; echo x >/tmp/e/x"
    )
    await box.put(
        "/tmp/d",
        ("f", "mine"),
        ("up/inner", "below"),
        ("../../over", "clamped"),
        ("/abs/olute", "too"),
        ("l", {"type": tarfile.SYMTYPE, "linkname": "/abs"}),
        ("l/y", "through"),
        ("h", {"type": tarfile.LNKTYPE, "linkname": "../../../f"}),
    )
    assert outside.read_text() == "untouched"
    written = await box.sh("cd /tmp/d; cat f h inner over abs/olute abs/y")
    assert written == "mine" + "mine" + "below" + "clamped" + "too" + "through"
    out = ("l", {"type": tarfile.SYMTYPE, "linkname": "/tmp/e"})
    code, err = await box.write("/tmp/d", archive(out, ("l/y", "through")))
    assert (code, int(err.split()[0])) == (1, errno.ENOENT), "the folder has no /tmp/e"
    assert await box.sh("ls /tmp/e") == "x"
    tar = await box.read("/tmp/d/f")
    assert text(tar, "f") == "mine"


async def test_what_is_in_the_way_is_replaced_and_a_mounted_file_written(box: Box) -> None:
    await box.sh("echo old >/tmp/f; ln /tmp/f /tmp/other; mkfifo /tmp/p; ln -s /nowhere /tmp/s")
    await box.put("/tmp", ("f", "new"), ("p", "file"), ("s", "file"))
    assert await box.sh("cat /tmp/f /tmp/p /tmp/s /tmp/other") == "newfilefileold"


@pytest.mark.parametrize(
    ("path", "number"),
    [("/tmp/none", errno.ENOENT), ("/bin/busybox/x", errno.ENOTDIR), ("/tmp/loop/x", errno.ELOOP)],
)
async def test_what_can_not_be_read(box: Box, path: str, number: int) -> None:
    await box.sh("ln -s loop /tmp/loop")
    code, out, err = await box.guest.finish(box.name, await box.start(path))
    assert (code, out) == (1, b"")
    assert err.startswith(f"{number} ".encode()), err


async def test_what_can_not_be_written(box: Box) -> None:
    async def complaint(path: str, data: bytes) -> int:
        code, err = await box.write(path, data)
        assert code == 1
        return int(err.split()[0])

    big = archive(("big", {"size": 0}), ("x", "y" * (5 << 20)))
    assert await complaint("/tmp", big) == errno.ENOSPC
    await box.sh("rm -rf /tmp/*")
    assert await complaint("/tmp", b"no archive" * 200) == 0
    assert await complaint("/tmp", archive(("f", "x" * 5000))[:3000]) == 0, "it breaks off"
    assert await complaint("/bin/sh", archive(("f", "x"))) == errno.ENOTDIR
    assert await complaint("/proc", archive(("f", "x"))) in (errno.ENOENT, errno.EACCES)
    await box.sh("mkdir /tmp/d")
    assert await complaint("/tmp", archive(("d", "x"))) == errno.EISDIR


async def test_a_copy_ends_with_its_container(guest: Guest) -> None:
    async with opened(guest, "c-ends") as box:
        exec_id = await box.start("/", extract=True)
    with pytest.raises(TtrpcError) as caught:
        await guest.wait("c-ends", exec_id)
    assert caught.value.code == status.INVALID_ARGUMENT


async def test_a_copy_that_is_given_up_is_killed(box: Box) -> None:
    exec_id = await box.start("/tmp", extract=True)
    await box.guest.signal(box.name, 9, exec_id)
    assert await box.guest.wait(box.name, exec_id) == 137


async def test_calls_that_make_no_sense(box: Box) -> None:
    for exec_id, path in (("", "/"), (box.name, "/"), ("e", "tmp"), ("e", "/a\0b")):
        request = extension_pb2.ArchiveRequest(container_id=box.name, exec_id=exec_id, path=path)
        with pytest.raises(TtrpcError) as caught:
            await box.guest.extension.Archive(request, timeout=LIMIT)
        assert caught.value.code == status.INVALID_ARGUMENT


async def test_an_ended_container_has_no_files(guest: Guest) -> None:
    await guest.create("c-over", ["true"])
    await guest.start("c-over")
    assert await guest.wait("c-over") == 0
    request = extension_pb2.ArchiveRequest(container_id="c-over", exec_id="e", path="/")
    with pytest.raises(TtrpcError) as caught:
        await guest.extension.Archive(request, timeout=LIMIT)
    assert caught.value.code == status.FAILED_PRECONDITION
    await guest.remove("c-over")
