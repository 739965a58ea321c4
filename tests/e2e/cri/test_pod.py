"""One pod that uses what pods use, on every containerd series."""

from __future__ import annotations

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.pods import Kubelet, linux

pytestmark = pytest.mark.root


@pytest.mark.core
def test_smoke(kubelet: Kubelet) -> None:
    pod = kubelet.pod("first")
    one = pod.container("one", "sleep", "1000", linux=linux(pid=pods.CONTAINER))
    assert one.sh("echo hello; hostname") == "hello\nfirst"
