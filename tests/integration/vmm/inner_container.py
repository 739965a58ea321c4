"""Runs in the outer VM of the VFIO test: containerd gives containers its card.

``python -m tests.integration.vmm.inner_container SETTINGS``, a JSON object: see :func:`main`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from deploy.lib import containerd
from deploy.lib.apt import Unpacked
from deploy.lib.busybox import IMAGE_NAME
from deploy.lib.containerd import Daemon, config_text
from shim.storage import direct_volume

_FOLDER = Path("/run/c")
_GROUPS = Path("/dev/vfio")
_SLOW = 600  # seconds; all of it runs emulated
_CONFIG = """
[katapy]
cache_dir = "/run/cache"
[runtime]
create_container_timeout = 600
vfio_mode = "{mode}"
[agent.kata]
dial_timeout = 500
[hypervisor.qemu]
path = "{qemu}"
default_memory = 256
{keys}
"""
_LINKS = "cat /sys/class/net/*/address"
_GROUP = "ls /dev/vfio; for node in /dev/vfio/*; do exec 3<>$node; done"
_VOLUME = "/run/volume"
_ON_IT = "grep ' /v ' /proc/mounts | cut -d' ' -f3; cat /v/file; echo written > /v/new"
_RUNS = (
    ("hot", "guest-kernel", 'hot_plug_vfio = "root-port"', _LINKS),
    ("cold", "guest-kernel", 'cold_plug_vfio = "root-port"', _LINKS),
    ("group", "vfio", 'hot_plug_vfio = "root-port"\nenable_iommu = true', _GROUP),
    ("volume", "guest-kernel", 'hot_plug_vfio = "root-port"', _ON_IT),
)


def main(settings: dict[str, Any]) -> None:
    """Run a container for each way to give it the card, and print what it sees.

    Args:
        settings: ``packages``, where containerd is unpacked; ``launcher``, the directory of the
            shim's program; ``images``, the guest image's directory; ``tar``, the busybox image;
            ``qemu``; ``runs``, the names of those of :data:`_RUNS` that are wanted.
    """
    containerd.START_TIMEOUT = _SLOW
    cache = Path("/run/cache")
    cache.mkdir()
    for entry in Path(settings["images"]).iterdir():
        if entry.is_dir():
            (cache / entry.name).symlink_to(entry)
    config = _FOLDER / "katapy.toml"
    daemon = Daemon(
        Unpacked(Path(settings["packages"]), "", {}),
        _FOLDER,
        config=config_text(_FOLDER, version=2),
        path=[Path(settings["launcher"])],
        env={"KATAPY_CONF_FILE": str(config), "KATAPY_STATE_DIR": "/run/katapy"},
    )
    daemon.start()
    print("containerd runs", flush=True)
    try:
        native = ["--snapshotter", "native"]
        daemon.ctr("images", "import", *native, settings["tar"], timeout=_SLOW)
        (group,) = (node for node in _GROUPS.iterdir() if node.name.isdigit())
        for name, mode, keys, script in _RUNS:
            if name not in settings["runs"].split():
                continue
            config.write_text(_CONFIG.format(mode=mode, qemu=settings["qemu"], keys=keys))
            options = ["--runtime", "io.containerd.katapy.v2", *_given(name, str(group)), *native]
            words = ["run", "--rm", *options, IMAGE_NAME, name, "sh", "-ec", script]
            told = daemon.ctr(*words, timeout=_SLOW)
            print(name, *told.split(), flush=True)
    except BaseException:
        print(daemon.log_tail(), flush=True)
        raise
    finally:
        daemon.stop()


def _given(name: str, group: str) -> list[str]:
    """ctr's options for a run: a device, or a volume that is the same function."""
    if name != "volume":
        return ["--device", group]
    info = {"volume-type": "vfiovol", "device": group, "fstype": "ext4"}
    direct_volume.add(_VOLUME, json.dumps(info).encode())
    return ["--mount", f"type=vfiovol,src={_VOLUME},dst=/v,options=rbind:rw"]


if __name__ == "__main__":
    os.makedirs("/run/tmp", exist_ok=True)
    os.environ["TMPDIR"] = "/run/tmp"
    main(json.loads(sys.argv[1]))
