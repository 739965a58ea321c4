"""A pod whose images are layers as disks: ``snapshotter = "erofs"`` of its handler (2.2)."""

from __future__ import annotations

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.containerds import number
from tests.support.pods import Kubelet, linux

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.core]

OWN = linux(pid=pods.CONTAINER)


def test_two_containers_have_disks_of_their_own(kubelet: Kubelet, series: str) -> None:
    if number(series) < (2, 2):
        pytest.skip(f"containerd {series} hands over no layers")
    pod = kubelet.pod("layers", handler="katapy-erofs", linux=OWN)
    for name in ("one", "two"):
        member = pod.container(name, "sleep", "1000", linux=OWN)
        root = member.sh("grep ' / ' /proc/mounts")
        assert root.startswith("overlay / overlay rw")
        assert "lowerdir=/run/kata-containers/sandbox/storage/" in root
        member.sh(f"test ! -e /left && echo {name} > /left")
        assert member.sh("cat /left") == name
