"""The answer to ``-info``: what this runtime is and can do, as containerd 2.x asks it.

Source: containerd api/types/introspection.proto; OCI runtime-spec features.md.
"""

from __future__ import annotations

import json

from protos import lite
from protos.tables import containerd_introspection as tables
from shim.errors import InvalidArgument
from shim.version import RUNTIME_NAME, VERSION

_FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

# What the guest does, not what the host could: cgroup v2 only, and crun with seccomp.
# Id-mapped and recursively read-only mounts are made on the host's side of the share.
FEATURES = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.1.0",
    "mountOptions": [
        "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "lazytime",
        "noatime", "nodev", "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid",
        "private", "rbind", "relatime", "remount", "ro", "rprivate", "rro", "rshared", "rslave",
        "runbindable", "rw", "shared", "slave", "strictatime", "suid", "sync", "unbindable",
    ],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "cgroup": {"v1": False, "v2": True, "systemd": False, "systemdUser": False},
        "seccomp": {"enabled": True},
        "apparmor": {"enabled": False},
        "selinux": {"enabled": False},
        "mountExtensions": {"idmap": {"enabled": True}},
    },
}  # fmt: skip

ALLOWED_MOUNTS = "format/*,mkdir/*,erofs"
"""What containerd's mount manager (2.2) leaves to us: layers of images become disks.

Source: containerd docs/mounts.md; shim/storage/layers.py.
"""


def runtime_info(request: bytes) -> bytes:
    """Render RuntimeInfo.

    Args:
        request: standard input: empty, or an Any of runtime options, which is echoed.

    Raises:
        InvalidArgument: the request is no Any.
    """
    try:
        options = lite.decode(tables.Any, request) if request else None
    except ValueError as error:
        raise InvalidArgument(f"standard input is no runtime options message: {error}") from error
    features = {"type_url": _FEATURES_URL, "value": json.dumps(FEATURES).encode()}
    return lite.encode(
        tables.RuntimeInfo,
        {
            "name": RUNTIME_NAME,
            "version": {"version": VERSION},
            "options": options,
            "features": features,
            "annotations": {"containerd.io/runtime-allow-mounts": ALLOWED_MOUNTS},
        },
    )
