"""What containerd 2.x asks the shim for its features for, when a handler names it by its path.

Up to 2.2.6 and 2.3.3 it asks no shim but of the type of runc's, and tells the kubelet that
the handler can do nothing; docs/operations.md, With Kubernetes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.lib.containerd import Daemon
from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2 as pods
from tests.e2e.cri.test_recent import MAPPING, mapped
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.core, pytest.mark.vm]

HANDLER = "katapy-by-path"


def test_a_handler_that_names_the_shims_path(
    series: str, kubelet: Kubelet, cri_daemon: Daemon, tmp_path: Path
) -> None:
    if not series.startswith("2."):
        pytest.skip(f"containerd {series} tells no features of its handlers")
    handlers = {item.name: item for item in kubelet.client.call("Status").runtime_handlers}
    features = handlers[HANDLER].features
    assert features.user_namespaces
    assert features.recursive_read_only_mounts

    volume = tmp_path / "volume"
    (volume / "inside").mkdir(parents=True)
    volume.chmod(0o777)
    subprocess.run(["mount", "-t", "tmpfs", "none", volume / "inside"], check=True)
    try:
        _recursively_read_only(kubelet, cri_daemon, volume)
    finally:
        subprocess.run(["umount", volume / "inside"], check=True)


def _recursively_read_only(kubelet: Kubelet, cri_daemon: Daemon, volume: Path) -> None:
    settings = mapped(pods.POD, MAPPING)
    maps = settings["security_context"]["namespace_options"]["userns_options"]
    mount: dict[str, Any] = {
        "host_path": str(volume),
        "container_path": "/volume",
        "uidMappings": maps["uids"],
        "gidMappings": maps["gids"],
        "readonly": True,
        "recursive_read_only": True,
    }
    pod = kubelet.pod("features", handler=HANDLER, linux=settings)
    one = pod.container("one", "sleep", "1000", linux=settings, mounts=[mount])
    assert one.sh("cat /proc/self/uid_map").split() == ["0", "70000", "65536"]
    for place in ("/volume", "/volume/inside"):
        assert "Read-only" in one.sh(f"touch {place}/file 2>&1 || true")
    for wrong in (
        {"propagation": cri.PROPAGATION_HOST_TO_CONTAINER},
        {"propagation": cri.PROPAGATION_BIDIRECTIONAL},
        {"readonly": False},
    ):
        with pytest.raises(CriError):
            pod.container("wrong", "true", linux=settings, mounts=[{**mount, **wrong}])
    # It finds the shim again, whose runtime it knows by another name.
    cri_daemon.stop()
    cri_daemon.start()

    def back() -> bool:
        try:
            return one.sh("echo here") == "here"
        except CriError:
            return False

    eventually(back, "CRI to be back", timeout=30)
    one.stop()
    assert one.status().exit_code == 137
    pod.remove()
