"""The files that the containers of a declared pod share, such as its resolv.conf."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping

import trio

from shim.cleanup.rollback import Rollback
from shim.oci.declared_pod import DeclaredPod


async def make_pod_files(pod: DeclaredPod, folder: str, cleanup: Rollback) -> dict[str, str]:
    """Write them into a new folder; their paths by their place in a container.

    Args:
        pod: whose files they are.
        folder: in the pod's runtime directory, which the ledger has with all in it.
        cleanup: takes their removal.

    Raises:
        OSError: the host refuses.
    """

    async def remove() -> None:
        await trio.to_thread.run_sync(_remove, folder)

    cleanup.push("the pod's files", remove)
    return await trio.to_thread.run_sync(lambda: _write(folder, pod.files()))


def _write(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    os.mkdir(folder, 0o755)
    paths = {}
    for place, text in files.items():
        path = os.path.join(folder, posixpath.basename(place))
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        paths[place] = path
    return paths


def _remove(folder: str) -> None:
    for entry in os.scandir(folder):
        os.unlink(entry.path)
    os.rmdir(folder)
