"""How the guest mounts the pod's share, in the agent's terms.

Source: Kata's ``kataShared`` storage; Linux Documentation/filesystems/9p.rst.
"""

from __future__ import annotations

from protos.kata import agent_pb2
from shim.oci.mounts import GUEST_SHM
from shim.storage.share import GUEST_SHARE

SHARE_TAG = "kataShared"


def share_storage(shared_fs: str, msize: int) -> agent_pb2.Storage:
    """Describe the mount of the share.

    Args:
        shared_fs: ``virtio-fs`` or ``virtio-9p``.
        msize: largest 9p message in bytes.
    """
    if shared_fs == "virtio-fs":
        return agent_pb2.Storage(
            driver="virtio-fs", source=SHARE_TAG, fstype="virtiofs", mount_point=GUEST_SHARE
        )
    options = ["trans=virtio", "version=9p2000.L", f"msize={msize}", "cache=mmap"]
    return agent_pb2.Storage(
        driver="9p", source=SHARE_TAG, fstype="9p", options=options, mount_point=GUEST_SHARE
    )


def shm_storage(size: int) -> agent_pb2.Storage:
    """Describe the pod's /dev/shm, a file system in the guest's memory.

    Args:
        size: bytes it may hold.
    """
    options = ["nosuid", "nodev", "noexec", "mode=1777", f"size={size}"]
    return agent_pb2.Storage(
        driver="ephemeral", source="shm", fstype="tmpfs", options=options, mount_point=GUEST_SHM
    )
