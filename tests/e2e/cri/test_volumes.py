"""Volumes that a pod's containers hand to each other."""

from __future__ import annotations

import json

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux

pytestmark = [pytest.mark.root, pytest.mark.vm]

PRIVILEGED = linux(pid=pods.CONTAINER, privileged=True)


def test_a_mount_of_one_container_is_shown_in_another(kubelet: Kubelet) -> None:
    shared = [
        {"name": n, "src_ctr": "maker", "src_path": "/made", "dst_ctr": n, "dst_path": "/got/it"}
        for n in ("taker", "early")
    ]
    key = "io.katapy.config.runtime.shared_mounts"
    pod = kubelet.pod("shared", annotations={key: json.dumps(shared)}, linux=PRIVILEGED)
    with pytest.raises(CriError, match="shared mount early, /made of container maker: no such"):
        pod.container("early", "true")
    script = "sleep 0.5; mkdir /made; mount -t tmpfs none /made; echo hi >/made/f; sleep 1000"
    maker = pod.container("maker", "sh", "-c", script, linux=PRIVILEGED)
    taker = pod.container("taker", "sleep", "1000")
    assert taker.sh("cat /got/it/f; echo back >/got/it/g") == "hi"
    assert maker.sh("cat /made/g") == "back"
    # Nobody else has it, and it outlives the container that made it.
    assert pod.container("other", "sleep", "1000").try_exec("ls", "/got").exit_code != 0
    maker.stop()
    assert taker.sh("cat /got/it/g") == "back"
    pod.remove()
