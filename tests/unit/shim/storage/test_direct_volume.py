from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidArgument, NotFound, Unimplemented
from shim.storage.direct_volume import DirectVolume, add, directory_of, find, parse, remove, user_of

INFO: dict[str, Any] = {"volume-type": "block", "device": "/dev/sdb", "fstype": "ext4"}


def encoded(**changes: Any) -> bytes:
    return json.dumps(INFO | changes).encode()


def test_what_is_added_is_found_and_removed(tmp_path: Path) -> None:
    base = str(tmp_path)
    assert find("/v/1", base) is None
    text = encoded(
        options=["noatime"], metadata={"fsGroup": "20", "fsGroupChangePolicy": "OnRootMismatch"}
    )
    add("/v/1", text, base)
    assert find("/v/1", base) == DirectVolume("/v/1", "/dev/sdb", "ext4", ("noatime",), 20, 1)
    with pytest.raises(NotFound):
        user_of("/v/1", base)
    (Path(directory_of("/v/1", base)) / "sandbox").touch()
    assert user_of("/v/1", base) == "sandbox"
    remove("/v/1", base)
    remove("/v/1", base)
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_katas() -> None:
    name = directory_of("/a/b?", "/d")
    assert name == "/d/L2EvYj8="


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"{", InvalidArgument),
        (b"[]", InvalidArgument),
        (encoded(device="sdb"), InvalidArgument),
        (encoded(fstype=""), InvalidArgument),
        (encoded(options="ro"), InvalidArgument),
        (encoded(metadata=[1]), InvalidArgument),
        (encoded(metadata={"fsGroup": "x"}), InvalidArgument),
        (encoded(metadata={"fsGroupChangePolicy": "Never"}), InvalidArgument),
        (encoded(metadata={"encryptionKey": "k"}), Unimplemented),
        (encoded(**{"volume-type": "nfs"}), Unimplemented),
        (encoded(**{"volume-type": "spdkvol"}, device="spdk:x"), InvalidArgument),
        (encoded(metadata={"num_queues": "0"}), InvalidArgument),
        (encoded(metadata={"createFilesystem": "maybe"}), InvalidArgument),
        (encoded(fstype="xfs", metadata={"createFilesystem": "true"}), Unimplemented),
        (encoded(metadata={"num_queues": "many"}), InvalidArgument),
    ],
)
def test_malformed_descriptions_are_refused(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="here"):
        parse("/v", text, "here")


@pytest.mark.parametrize(
    ("word", "device", "kind", "found"),
    [
        ("directvol", "/dev/sdb", "block", "/dev/sdb"),
        ("spdkvol", "/s/vhost.sock", "vhost-user", "/s/vhost.sock"),
        ("spdkvol", "spdk:///s/vhost.sock", "vhost-user", "/s/vhost.sock"),
        ("spoolvol", "spool:///s/vhost.sock", "vhost-user", "/s/vhost.sock"),
        ("vfiovol", "45:00.1", "vfio", "45:00.1"),
        ("vfiovol", "/dev/vfio/7", "vfio", "/dev/vfio/7"),
    ],
)
def test_types_of_katas_runtimes(word: str, device: str, kind: str, found: str) -> None:
    text = encoded(**{"volume-type": word}, device=device, metadata={"num_queues": "2"})
    volume = parse("/v", text, "here")
    assert (volume.kind, volume.device, volume.queues) == (kind, found, 2)


def test_a_path_too_long_to_be_described_is_none(tmp_path: Path) -> None:
    assert find("/" + "x" * 300, str(tmp_path)) is None
