"""A containerd with its CRI plugin on, in a network namespace of its own.

The handlers are katapy, katapy-sandbox (containerd 2.x: the shim's own sandbox API, no
pause container), katapy-streaming (the same, and stdio by streams to the shim),
katapy-by-path (2.x: asked for its features) and runc, to see what a test would find without
a VM.

Source: containerd docs/cri/config.md for each version of the file's format.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.lib.busybox import write_image
from deploy.lib.runtime import SHIM, Runtime

PAUSE_IMAGE = "localhost/katapy/pause:latest"
SUBNET = "10.88.61.0/24"
GATEWAY = "10.88.61.1"
EROFS = """
[plugins."io.containerd.snapshotter.v1.erofs"]
  default_size = "64MiB"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["erofs", "walking"]
"""
"""Layers are images from the start, and each container has a disk for its changes."""

NAMESPACE = "k8s.io"
"""containerd's namespace for all that CRI makes."""


def write_pause_image(path: Path) -> None:
    """Write the image that CRI wants a pod's first container to have.

    In a shared pid namespace its process is seen; it must not be what tests look for by name.
    """
    write_image(path, PAUSE_IMAGE, command=("/bin/tail", "-f", "/dev/null"))


def write_cni(folder: Path) -> None:
    """Write the pod network: a bridge, addresses from a file, host ports."""
    network = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "addresses"),
                    "ranges": [[{"subnet": SUBNET, "gateway": GATEWAY}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (folder / "net.d").mkdir(parents=True)
    (folder / "net.d" / "10-pods.conflist").write_text(json.dumps(network, indent=1))


def cri_config(
    folder: Path, runtime: Runtime, *, version: int, plugins: Path, erofs: bool = False
) -> str:
    """A daemon configuration with CRI on and everything below ``folder``.

    Params: ``version`` is 2 (containerd 1.x) or 3 (2.x); ``plugins`` holds the CNI plugins;
    ``erofs`` adds a handler whose images are layers as disks (2.2 or newer).
    """
    cni = folder / "cni"
    if version == 2:
        cri = f"""\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni / "net.d"}"
"""
        table = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
    else:
        cri = f"""\
[plugins."io.containerd.cri.v1.images"]
  use_local_image_pull = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{cni / "net.d"}"
"""
        table = 'plugins."io.containerd.cri.v1.runtime".containerd.runtimes'
    handlers = [_handler(table, "runc", "io.containerd.runc.v2")]
    handlers.append(_handler(table, "katapy", runtime.name))
    if version == 3:
        shim = 'sandboxer = "shim"'
        streaming = f'{shim}\n  io_type = "streaming"'
        handlers.append(_handler(table, "katapy-sandbox", runtime.name, shim))
        handlers.append(_handler(table, "katapy-streaming", runtime.name, streaming))
        if runtime.launcher_dir:
            path = f'runtime_path = "{runtime.launcher_dir / SHIM}"'
            handlers.append(_handler(table, "katapy-by-path", "io.containerd.runc.v2", path))
    if erofs:
        handlers.append(_handler(table, "katapy-erofs", runtime.name, 'snapshotter = "erofs"'))
        handlers.append(EROFS)
    return f"""\
version = {version}
root = "{folder / "root"}"
state = "{folder / "state"}"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = "{folder / "grpc.sock"}"

[ttrpc]
  address = "{folder / "ttrpc.sock"}"

[debug]
  level = "debug"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder / "opt"}"

{cri}
{"".join(handlers)}"""


def _handler(table: str, name: str, runtime: str, extra: str = "") -> str:
    return f"""\
[{table}.{name}]
  runtime_type = "{runtime}"
  pod_annotations = ["io.katapy.*"]
  container_annotations = ["io.katapy.*"]
  {extra}
"""
