"""A root file system packed into a disk image, for a VM that shares no directories.

The image is a copy: what the container writes stays in the guest, on a layer above it.

Source: mkfs.erofs(1).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from typing import Any

import trio

from shim.errors import DeadlineExceeded, Internal
from shim.storage.mounts import Recorder, mount, unmount
from shim.storage.rootfs import PackedRootfs

PACK_TIMEOUT_S = 120.0


@dataclass(slots=True)
class _Noted:
    path: str
    note: Any


class Packing:
    """One container's image, from its making to its removal.

    Args:
        base: path of the image without its suffix; the directory is made. Not in /run,
            whose files are in memory.
        recorder: gets everything before it is made.
        container_id: whose it is.
    """

    def __init__(self, base: str, recorder: Recorder, container_id: str) -> None:
        self._base = base
        self._recorder = recorder
        self._container = container_id
        self._image: _Noted | None = None

    async def pack(self, plan: PackedRootfs) -> str:
        """Make the image and return its path.

        Raises:
            InvalidArgument, Internal, ResourceExhausted, DeadlineExceeded: as
                :func:`shim.storage.mounts.mount`, or mkfs.erofs fails.
        """
        await trio.to_thread.run_sync(_make_directory, os.path.dirname(self._base))
        path = f"{self._base}.erofs"
        self._image = _Noted(path, self._note("file", path=path))
        if not plan.mounts:
            await self._run_mkfs(path, plan.directory)
            return path
        root = f"{self._base}.d"
        directory = self._note("dir", path=root)
        await trio.to_thread.run_sync(_make_directory, root)
        made: list[_Noted] = []
        try:
            for entry in plan.mounts:
                target = os.path.join(root, entry.target.strip("/"))
                made.append(_Noted(target, await mount(entry, target, self._recorder)))
            await self._run_mkfs(path, root)
        finally:
            with trio.CancelScope(shield=True):
                for item in reversed(made):
                    await unmount(item.path)
                    self._recorder.remove(item.note)
                os.rmdir(root)
                self._recorder.remove(directory)
        return path

    async def aclose(self) -> None:
        """Remove the image. Idempotent."""
        if self._image is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._image.path)
            self._recorder.remove(self._image.note)
            self._image = None

    def _note(self, kind: str, **fields: Any) -> Any:
        return self._recorder.add(kind, container=self._container, **fields)

    async def _run_mkfs(self, image: str, directory: str) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        command = ["mkfs.erofs", "--quiet", image, directory]
        try:
            with trio.fail_after(PACK_TIMEOUT_S):
                done = await trio.run_process(
                    command,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env={**os.environ, "PATH": path},
                )
        except FileNotFoundError as error:
            raise Internal(
                "mkfs.erofs is not installed (package erofs-utils), and without shared_fs a "
                "rootfs has to be packed"
            ) from error
        except trio.TooSlowError as error:
            raise DeadlineExceeded(
                f"packing {directory} took over {PACK_TIMEOUT_S:g} s; is the disk of {image} slow "
                "or full?"
            ) from error
        except subprocess.SubprocessError as error:
            raise Internal(f"{' '.join(command)}: {error}") from error
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()
            raise Internal(f"{' '.join(command)}: exit code {done.returncode}: {text}")


def _make_directory(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
