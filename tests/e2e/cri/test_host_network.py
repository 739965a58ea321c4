"""A pod of the host's network, as far as a VM can be one: its ports are the host's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.lib.runtime import Runtime
from deploy.lib.tools import fetch_slirp4netns
from protos.cri import sandbox_pb2 as pods
from tests.e2e.cri.test_pod import forwarded
from tests.support import versions
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

HOST = linux(pid=pods.CONTAINER, network=pods.NODE)
PORT = 12003
SEEN = 15.0


@pytest.fixture
def proxy(runtime: Runtime) -> Iterator[None]:
    """The node's pods of the host's network get it by a proxy."""
    packages = versions.obtain("slirp4netns", "bookworm", fetch_slirp4netns)
    program = packages.program("/usr/bin/slirp4netns")
    assert runtime.config is not None
    drop_in = runtime.config.parent / "config.d" / "host-network.toml"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f'[katapy]\nhost_network = "proxy"\nslirp4netns = "{program}"\n')
    yield
    drop_in.unlink()


def test_it_is_refused_unless_configured(kubelet: Kubelet) -> None:
    with pytest.raises(CriError, match="host_network"):
        kubelet.pod("refused", linux=HOST)


def test_its_ports_are_the_hosts(kubelet: Kubelet, proxy: None) -> None:
    pod = kubelet.pod("host", linux=HOST)
    script = f"mkdir /www; echo hello > /www/index.html; exec httpd -f -p {PORT} -h /www"
    pod.container("web", "sh", "-c", script, linux=HOST)

    def reached() -> bool:
        try:
            with kubelet.network.connect("127.0.0.1", PORT, timeout=5) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"hello" in sock.makefile("rb").read()
        except OSError:
            return False

    eventually(reached, "the pod's port at the host", timeout=SEEN)
    assert b"hello" in forwarded(pod, PORT)
    pod.remove()
