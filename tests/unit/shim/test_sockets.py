from __future__ import annotations

import hashlib
import os
import socket
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from shim import sockets
from shim.errors import DeadlineExceeded, InvalidArgument


def test_path_follows_containerds_scheme() -> None:
    digest = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/pod1").hexdigest()
    path = sockets.socket_path(
        "/run/containerd/s", "/run/containerd/containerd.sock", "k8s.io", "pod1"
    )
    assert path == f"/run/containerd/s/{digest}"
    unclean = sockets.socket_path(
        "/run/containerd/s", "/run//containerd/./containerd.sock", "k8s.io", "pod1"
    )
    assert unclean == path


def test_long_directories_shorten_the_name_up_to_a_limit() -> None:
    directory = "/" + "d" * 60
    path = sockets.socket_path(directory, "/a", "n", "i")
    assert len(path) == sockets.PATH_MAX
    with pytest.raises(InvalidArgument, match="longer than 73 bytes"):
        sockets.socket_path("/" + "d" * 73, "/a", "n", "i")
    with pytest.raises(InvalidArgument, match="not an absolute path"):
        sockets.socket_path("s", "/a", "n", "i")


def test_listener_answers_with_private_modes(tmp_path: Path) -> None:
    path = f"{tmp_path}/a/s/sock"
    with sockets.DirectoryLock(os.path.dirname(path)):
        assert not sockets.answers(path)
        listener = sockets.listen(path)
    with closing(listener):
        assert sockets.answers(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        assert not os.get_inheritable(listener.fileno())
    assert not sockets.answers(path)


def test_full_backlog_is_an_answer(tmp_path: Path) -> None:
    path = f"{tmp_path}/sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = [
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            for _ in range(4)
        ]
        codes = [client.connect_ex(path) for client in waiting]
        assert codes[-1] != 0
        assert sockets.answers(path)
        for client in waiting:
            client.close()


def test_stale_socket_is_replaced_and_a_living_one_kept(tmp_path: Path) -> None:
    path = f"{tmp_path}/sock"
    sockets.listen(path).close()
    assert os.path.exists(path)
    listener = sockets.listen(path)
    with closing(listener):
        assert not sockets.remove_stale(path)
        assert os.path.exists(path)
    assert sockets.remove_stale(path)
    assert not os.path.exists(path)
    assert sockets.remove_stale(path)


def test_own_socket_is_removed_but_not_a_successors(tmp_path: Path) -> None:
    path = f"{tmp_path}/sock"
    with closing(sockets.listen(path)):
        own = sockets.identity(path)
        os.rename(path, path + ".kept")  # keeps the inode number taken
        with closing(sockets.listen(path)):
            sockets.remove_own(path, own)
            assert os.path.exists(path)
            sockets.remove_own(path, sockets.identity(path))
            assert not os.path.exists(path)
            sockets.remove_own(path, own)
            sockets.remove_own(f"{tmp_path}/none/sock", own)
    assert os.listdir(tmp_path) == ["sock.kept"]


def test_lock_excludes_and_names_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "LOCK_TIMEOUT", 0.02)
    with (
        sockets.DirectoryLock(str(tmp_path)),
        pytest.raises(DeadlineExceeded, match=str(tmp_path)),
        sockets.DirectoryLock(str(tmp_path)),
    ):
        pass
    with sockets.DirectoryLock(str(tmp_path)):
        pass


def test_one_of_many_racing_starters_listens(tmp_path: Path) -> None:
    path = f"{tmp_path}/s/sock"
    barrier = threading.Barrier(8)
    listeners: list[object] = []

    def race() -> None:
        barrier.wait()
        with sockets.DirectoryLock(os.path.dirname(path)):
            if not sockets.answers(path):
                listeners.append(sockets.listen(path))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listeners) == 1
    listeners[0].close()  # type: ignore[attr-defined]


def test_digest_is_sha256() -> None:
    assert sockets.sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()
