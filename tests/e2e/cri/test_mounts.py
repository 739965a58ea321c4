"""How volumes are mounted: propagation, read-only and read-only all the way down."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from protos.cri import sandbox_pb2 as pods
from tests.support.containerds import asks_for_features
from tests.support.cri_client import CriError
from tests.support.pods import Kubelet, linux

pytestmark = pytest.mark.root

PRIVATE, FROM_HOST, BOTH = range(3)
PRIVILEGED = linux(pid=pods.CONTAINER, privileged=True)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


@contextmanager
def mounted(kind: str, path: Path) -> Iterator[Path]:
    """A directory that is a mount of its own, ``kind`` as in ``mount --make-KIND``."""
    (path / "later").mkdir(parents=True)
    (path / "inside").mkdir()
    mount("--bind", path, path)
    mount(f"--make-{kind}", path)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--recursive", path], check=True)


def supports_recursive_read_only(kubelet: Kubelet) -> bool:
    handlers = kubelet.client.call("Status").runtime_handlers
    return any(
        handler.features.recursive_read_only_mounts
        for handler in handlers
        if handler.name == kubelet.handler
    )


def test_mounts_are_as_asked(kubelet: Kubelet, series: str, tmp_path: Path) -> None:
    own = tmp_path / "read-only"
    with (
        mounted("private", tmp_path / "private") as private,
        mounted("shared", tmp_path / "from-host") as from_host,
        mounted("shared", tmp_path / "both") as both,
        mounted("private", own),
    ):
        mount("-t", "tmpfs", "none", own / "inside")
        volumes: list[dict[str, Any]] = [
            {"host_path": str(private), "container_path": "/private", "propagation": PRIVATE},
            {"host_path": str(from_host), "container_path": "/slave", "propagation": FROM_HOST},
            {"host_path": str(both), "container_path": "/both", "propagation": BOTH},
            {"host_path": str(own), "container_path": "/ro", "readonly": True},
        ]
        recursive = {"host_path": str(own), "container_path": "/rro", "readonly": True}
        recursive["recursive_read_only"] = True
        can_rro = supports_recursive_read_only(kubelet)
        assert can_rro or not asks_for_features(series)
        pod = kubelet.pod("mounts", linux=PRIVILEGED)
        one = pod.container(
            "one", "sleep", "1000", linux=PRIVILEGED, mounts=[*volumes, *[recursive] * can_rro]
        )

        # What the host mounts later.
        (tmp_path / "source").mkdir()
        (tmp_path / "source/flag").touch()
        for path in (private, from_host, both):
            mount("--bind", tmp_path / "source", path / "later")
        assert one.sh("ls /private/later; ls /slave/later /both/later") == (
            "/both/later:\nflag\n\n/slave/later:\nflag"
        )

        # What the container mounts stays in the VM, however it is mounted.
        for name in ("private", "slave", "both"):
            one.sh(f"mount --bind /etc /{name}/inside; test -e /{name}/inside/passwd")
        for path in (private, from_host, *([both] if kubelet.handler != "runc" else [])):
            assert list((path / "inside").iterdir()) == []

        # Read-only is the volume, not what is mounted in it, unless that is asked for too.
        assert "Read-only" in one.sh("touch /ro/file 2>&1 || true")
        one.sh("mount -o remount,bind,rw /ro || true")
        assert "Read-only" in one.sh("touch /ro/file 2>&1 || true") or kubelet.handler == "runc"
        one.sh("touch /ro/inside/file")
        assert (own / "inside/file").exists()
        if can_rro:
            for place in ("/rro", "/rro/inside"):
                assert "Read-only" in one.sh(f"touch {place}/other 2>&1 || true")
            for wrong in ({"propagation": FROM_HOST}, {"propagation": BOTH}, {"readonly": False}):
                with pytest.raises(CriError):
                    pod.container("wrong", "true", mounts=[{**recursive, **wrong}])
        pod.remove()
