"""Security contexts: many containers of one privileged pod, each says what it may do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux

pytestmark = pytest.mark.root

STATUS = "grep -E '{}' /proc/self/status"
LOCALHOST, UNCONFINED, DEFAULT = 2, 1, 0


class Case(NamedTuple):
    """A container: its script, its security context, what its output has to match."""

    name: str
    script: str
    security: dict[str, Any]
    expected: str


def user(number: int) -> dict[str, Any]:
    return {"run_as_user": {"value": number}}


def cases(profile: Path) -> list[Case]:
    blocking = {"profile_type": LOCALHOST, "localhost_ref": str(profile)}
    admin = {"capabilities": {"add_capabilities": ["SYS_ADMIN"]}}
    no_change = "hostname blocked 2>/dev/null || echo refused"
    return [
        Case("user", "id -u; id -g", user(1000), "1000\n1000"),
        Case("username", "id -u", {"run_as_username": "user"}, "1000"),
        Case("group", "id -g", {**user(1000), "run_as_group": {"value": 2000}}, "2000"),
        Case("groups", "id -G", {**user(1000), "supplemental_groups": [1234]}, ".*1234.*"),
        Case("read-only", "touch /x 2>&1", {"readonly_rootfs": True}, ".*Read-only file system"),
        Case("writable", "touch /x && echo written", {}, "written"),
        Case("privileged", "mount -t tmpfs none /tmp && echo ok", {"privileged": True}, "ok"),
        Case("privileged-devices", "test -b /dev/vda && echo ok", {"privileged": True}, "ok"),
        Case("unprivileged-devices", "test -e /dev/vda || echo ok", {}, "ok"),
        Case("unprivileged", "mount -t tmpfs none /tmp 2>&1", {}, ".*(denied|not permitted).*"),
        Case(
            "added", STATUS.format("CapEff"),
            {"capabilities": {"add_capabilities": ["NET_ADMIN"]}}, r"CapEff:\s+00000000a80435fb",
        ),
        Case(
            "dropped", STATUS.format("CapEff"),
            {"capabilities": {"drop_capabilities": ["CHOWN"]}}, r"CapEff:\s+00000000a80425fa",
        ),
        Case(
            "all-added", STATUS.format("CapEff"),
            {"capabilities": {"add_capabilities": ["ALL"]}}, r"CapEff:\s+000001fff[ef]ffffff",
        ),
        Case(
            "all-dropped", STATUS.format("CapBnd"),
            {"capabilities": {"drop_capabilities": ["ALL"]}}, r"CapBnd:\s+0000000000000000",
        ),
        Case("masked", "/bin/ls 2>&1", {"masked_paths": ["/bin/ls"]}, ".*[Pp]ermission denied"),
        Case(
            "read-only-path", "touch /tmp/x 2>&1", {"readonly_paths": ["/tmp"]},
            ".*Read-only file system",
        ),
        Case("seccomp-default", STATUS.format("Seccomp:"), {"seccomp": {"profile_type": DEFAULT}},
             r"Seccomp:\s+2"),
        Case("seccomp-none", STATUS.format("Seccomp:"), {}, r"Seccomp:\s+0"),
        Case("seccomp-unconfined", STATUS.format("Seccomp:"),
             {"seccomp": {"profile_type": UNCONFINED}}, r"Seccomp:\s+0"),
        Case("seccomp-blocks", no_change, {**admin, "seccomp": blocking}, "refused"),
        Case("seccomp-privileged", "hostname changed && hostname",
             {"privileged": True, "seccomp": blocking}, "changed"),
        Case("seccomp-allows", "hostname allowed && hostname",
             {**admin, "seccomp": {"profile_type": UNCONFINED}}, "allowed"),
        Case("no-new-privileges", STATUS.format("NoNewPrivs"), {"no_new_privs": True},
             r"NoNewPrivs:\s+1"),
        Case("new-privileges", STATUS.format("NoNewPrivs"), {"no_new_privs": False},
             r"NoNewPrivs:\s+0"),
    ]  # fmt: skip


def test_what_containers_may_do(kubelet: Kubelet, tmp_path: Path) -> None:
    profile = tmp_path / "block-hostname.json"
    rule = {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    pod = kubelet.pod("secure", linux=linux(pid=pods.CONTAINER, privileged=True))
    found = cases(profile)
    members = [
        pod.container(
            case.name, "sh", "-c", case.script, linux=linux(pid=pods.CONTAINER, **case.security)
        )
        for case in found
    ]
    wrong = []
    for case, member in zip(found, members, strict=True):
        member.wait_exit()
        said = "\n".join(text for _stream, text in member.log)
        if not re.fullmatch(case.expected, said):
            wrong.append(f"{case.name}: {said!r}")
    assert not wrong, "\n".join(wrong)
    with pytest.raises(CriError, match="without user"):
        pod.container("no-user", "true", linux=linux(run_as_group={"value": 2000}))
