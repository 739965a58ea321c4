"""What CRI offers since containerd 2: user namespaces with volumes, a policy for groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2 as pods
from tests.support.containerds import asks_for_features
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux

pytestmark = pytest.mark.root

MAPPING = (70000, 0, 65536)


def mapped(mode: int, *mappings: tuple[int, int, int], **security: Any) -> dict[str, Any]:
    """The ``linux`` field of a pod with a user namespace: host id, container id, length."""
    maps = [dict(zip(("host_id", "container_id", "length"), m, strict=True)) for m in mappings]
    result = linux(pid=pods.CONTAINER, **security)
    options = result["security_context"]["namespace_options"]
    options["userns_options"] = {"mode": mode, "uids": maps, "gids": maps}
    return result


@pytest.mark.core
def test_users_and_groups(kubelet: Kubelet, series: str, tmp_path: Path) -> None:
    if series.startswith("1."):
        pytest.skip("containerd 1.x maps no owners of volumes and has one policy for groups")
    offered = [
        handler.features.user_namespaces
        for handler in kubelet.client.call("Status").runtime_handlers
        if handler.name == kubelet.handler
    ]
    assert offered == [True] or not asks_for_features(series)
    volume = tmp_path / "v"
    volume.mkdir(mode=0o755)
    settings = mapped(pods.POD, MAPPING)
    pod = kubelet.pod("mapped", linux=settings)
    maps = settings["security_context"]["namespace_options"]["userns_options"]
    mount = {
        "host_path": str(volume),
        "container_path": "/v",
        "uidMappings": maps["uids"],
        "gidMappings": maps["gids"],
    }
    one = pod.container("one", "sleep", "1000", linux=settings, mounts=[mount])
    for kind in ("uid_map", "gid_map"):
        assert one.sh(f"cat /proc/self/{kind}").split() == ["0", "70000", "65536"]
    one.sh("echo hello > /v/file; echo root > /file")
    assert one.sh("stat -c %u /v/file /file / /v").split() == ["0"] * 4
    assert (volume / "file").stat().st_uid == 0, "its volume is id-mapped"

    user = {"run_as_user": {"value": 1000}, "supplemental_groups": [1234]}
    for policy, expected in ((cri.Merge, "1000 1234 2000"), (cri.Strict, "1000 1234")):
        settings = mapped(pods.POD, MAPPING, supplemental_groups_policy=policy, **user)
        member = pod.container(f"policy-{policy}", "sleep", "1000", linux=settings)
        assert sorted(member.sh("id -G").split()) == expected.split()

    for wrong in (
        mapped(pods.POD, MAPPING, (200000, 65536, 10)),
        mapped(pods.POD, (70000, 1, 65535)),
        mapped(pods.CONTAINER, MAPPING),
        mapped(pods.TARGET, MAPPING),
    ):
        with pytest.raises(CriError):
            kubelet.pod("wrong", linux=wrong)
