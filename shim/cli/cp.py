"""``katapy cp``: files into and out of a running container, as ``docker cp`` does it.

On this side archives are made and unpacked by the guest agent's own program, in a process
of its own: what a guest hands over can't get out of the directory that it is meant for.
"""

from __future__ import annotations

import argparse
import io
import os
import posixpath
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import trio

from shim.cli.transfer import copy_in, copy_out, shim_of
from shim.errors import InvalidArgument, KatapyError, NotFound, Unavailable
from shim.ttrpc.client import Client

_HOME = str(Path(__file__).resolve().parents[2])
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from guest_agent.archive import main; sys.exit(main(sys.argv[2:]))"
)
_CHUNK = 1 << 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    place = "ID:PATH in a container, or a path here; - for a tar archive"
    parser.add_argument("source", help=place)
    parser.add_argument("target", help=place)


def run(arguments: argparse.Namespace) -> int:
    """Do it; 0, or a KatapyError."""
    source, target = _place(arguments.source), _place(arguments.target)
    if (source is None) == (target is None):
        raise InvalidArgument("one of the two must be a path of a container, as ID:PATH")
    failures: list[KatapyError] = []

    async def copy() -> None:
        container = (source or target or ("", ""))[0]
        try:
            async with shim_of(container) as client:
                if source is not None:
                    await _out(client, *source, arguments.target)
                elif target is not None:
                    await _in(client, *target, arguments.source)
        except KatapyError as error:
            failures.append(error)

    trio.run(copy)
    if failures:
        raise failures[0]
    return 0


def _place(text: str) -> tuple[str, str] | None:
    """Container and path of ID:PATH; None for a path of the host."""
    container, colon, path = text.partition(":")
    if not colon or not container or "/" in container or container.startswith("."):
        return None
    if not path.startswith("/"):
        raise InvalidArgument(f"{text}: a path in a container begins with /")
    return container, path


async def _out(client: Client, container: str, path: str, target: str) -> None:
    if target == "-":
        await copy_out(client, container, path, _write_stdout)
        return
    folder, name = _destination(target)
    if not name:
        # The program replaces what it meets and follows no link that a former copy brought.
        await _unpack(folder, client, container, path)
        return
    with tempfile.TemporaryDirectory(prefix=".katapy-cp-", dir=folder) as scratch:
        await _unpack(scratch, client, container, path)
        for found in os.listdir(scratch):
            os.rename(f"{scratch}/{found}", f"{folder}/{name}")


def _destination(target: str) -> tuple[str, str]:
    """The directory that takes a copy, and the copy's name there; "" for its own."""
    if os.path.isdir(target):
        return target, ""
    folder, name = os.path.split(os.path.abspath(target))
    return folder, name


async def _unpack(folder: str, client: Client, container: str, path: str) -> None:
    process = _start("extract", folder, "/")
    with process:
        pipe = process.stdin
        assert pipe is not None

        async def write(data: bytes) -> None:
            await trio.to_thread.run_sync(pipe.write, data)

        try:
            await copy_out(client, container, path, write)
        except KatapyError:
            process.kill()
            raise
        pipe.close()
        await _finish(process)


async def _in(client: Client, container: str, path: str, source: str) -> None:
    if source == "-":
        await copy_in(client, container, path, _read_stdin)
        return
    source = _absolute(source)
    folder, title = path, posixpath.basename(source)
    if not path.endswith("/") and not await _is_folder(client, container, path):
        folder, title = posixpath.split(path)
    process = _start("create", "/", source, title)
    with process:
        reading = process.stdout
        assert reading is not None
        head = await trio.to_thread.run_sync(reading.read, _CHUNK)
        if not head:
            await _finish(process)  # it is not there: nothing is to be made in the container

        async def read() -> bytes:
            nonlocal head
            data, head = head, b""
            if data:
                return data
            data = await trio.to_thread.run_sync(reading.read, _CHUNK)
            if not data:
                await _finish(process)
            return data

        await copy_in(client, container, folder, read)


def _absolute(path: str) -> str:
    return os.path.abspath(path)


async def _is_folder(client: Client, container: str, path: str) -> bool:
    """Whether a path of the container is a directory, or a link, which may lead to one."""
    data = io.BytesIO()

    async def write(piece: bytes) -> None:
        data.write(piece)

    try:
        await copy_out(client, container, path, write, no_walk=True)
    except NotFound:
        return False
    data.seek(0)
    with tarfile.open(fileobj=data) as tar:
        entry = tar.next()
    return entry is not None and (entry.isdir() or entry.issym())


def _start(what: str, folder: str, path: str, *title: str) -> subprocess.Popen[bytes]:
    """Start the agent's program on a directory of the host."""
    root = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        argv = [sys.executable, "-ISB", "-c", _PROGRAM, _HOME, what, str(root), path, "", *title]
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if what == "extract" else subprocess.DEVNULL,
            stdout=subprocess.PIPE if what == "create" else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            pass_fds=[root],
        )
    finally:
        os.close(root)


async def _finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end. Raises: Unavailable with what it says, if it failed."""
    assert process.stderr is not None
    text = await trio.to_thread.run_sync(process.stderr.read)
    if await trio.to_thread.run_sync(process.wait):
        line = text.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(line.partition(" ")[2] or "the archive was not made")


async def _write_stdout(data: bytes) -> None:
    await trio.to_thread.run_sync(sys.stdout.buffer.write, data)


async def _read_stdin() -> bytes:
    return await trio.to_thread.run_sync(sys.stdin.buffer.read, _CHUNK)
