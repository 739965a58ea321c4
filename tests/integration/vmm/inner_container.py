"""Runs in the outer VM of the VFIO test: containerd gives containers its card.

``python -m tests.integration.vmm.inner_container SETTINGS ADDRESS``: a JSON object, see
:func:`main`, and the card's address.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.lib import containerd
from deploy.lib.apt import Unpacked
from deploy.lib.busybox import IMAGE_NAME
from deploy.lib.containerd import Daemon, config_text
from shim.net import pci
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


_LINK = "ip addr show dev up0; ip route"
_LINK_RUNS = (
    ("cold-link", 'cold_plug_vfio = "root-port"'),
    ("hot-link", 'hot_plug_vfio = "root-port"'),
)
_MAC = "02:00:00:00:00:77"
_NETNS = "card"


def main(settings: dict[str, Any], address: str) -> None:
    """Run a container for each way to give it the card, and print what it sees.

    Args:
        address: the card's.
        settings: ``packages``, where containerd is unpacked; ``launcher``, the directory of the
            shim's program; ``images``, the guest image's directory; ``tar``, the busybox image;
            ``qemu``; ``runs``, the names of those of :data:`_RUNS` and :data:`_LINK_RUNS` that
            are wanted.
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
        for name, keys in _LINK_RUNS:
            if name not in settings["runs"].split():
                continue
            config.write_text(_CONFIG.format(mode="guest-kernel", qemu=settings["qemu"], keys=keys))
            _move_link(address)
            options = ["--runtime", "io.containerd.katapy.v2", *native]
            options += ["--with-ns", f"network:/run/netns/{_NETNS}"]
            words = ["run", "--rm", *options, IMAGE_NAME, name, "sh", "-ec", _LINK]
            told = daemon.ctr(*words, timeout=_SLOW)
            print(name, *told.split(), flush=True)
            print(f"{name}-after", pci.driver_of(address), *_links(address), flush=True)
    except BaseException:
        print(daemon.log_tail(), flush=True)
        raise
    finally:
        daemon.stop()


def _move_link(address: str) -> None:
    """Have the card's link in a network namespace, as a CNI plugin for SR-IOV leaves it."""
    pci.give_back(address, "virtio-pci")
    end = time.monotonic() + _SLOW
    while not (links := _links(address)):
        assert time.monotonic() < end, "no link came back"
        time.sleep(0.1)
    if not Path(f"/run/netns/{_NETNS}").exists():
        _ip("netns", "add", _NETNS)
    _ip("link", "set", *links, "netns", _NETNS, "name", "up0", "address", _MAC, "mtu", "1400")
    _ip("-n", _NETNS, "addr", "add", "192.0.2.2/24", "dev", "up0")
    _ip("-n", _NETNS, "link", "set", "up0", "up")
    _ip("-n", _NETNS, "route", "add", "default", "via", "192.0.2.1")


def _links(address: str) -> list[str]:
    return [path.name for path in Path(f"/sys/bus/pci/devices/{address}").glob("virtio*/net/*")]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


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
    main(json.loads(sys.argv[1]), sys.argv[2])
