"""Idmapped mounts: files appear with other owners, without a chown.

Source: mount_setattr(2) MOUNT_ATTR_IDMAP; user_namespaces(7); containerd core/mount
(mount_idmapped_linux.go).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from shim.errors import Internal, InvalidArgument
from shim.storage import syscalls
from shim.storage.options import IdMap, MountOptions, Owners, option_values
from shim.storage.overlay import split_layers
from shim.storage.trees import attach_clone


def idmapped(source: str, target: str, options: MountOptions, *, recursive: bool) -> None:
    """Mount ``source`` at ``target`` with the id maps of ``options``.

    Raises:
        InvalidArgument: only one of the two maps is given.
        Internal: the kernel or the file system does not do it.
    """
    with user_namespace(Owners(options.uid_map, options.gid_map)) as namespace:
        _attach(source, target, namespace, recursive=recursive)


@contextlib.contextmanager
def idmapped_layers(options: MountOptions, scratch: str) -> Iterator[Sequence[str]]:
    """Yield overlay data whose lower layers are idmapped, as is if there are no maps.

    The layers' mounts are needed only while the overlay is made.

    Args:
        options: of the overlay.
        scratch: path of a directory to be made for them, and removed again.

    Raises:
        InvalidArgument, Internal: as :func:`idmapped`.
    """
    if not (options.uid_map or options.gid_map):
        yield options.data
        return
    os.mkdir(scratch, 0o700)
    layers = split_layers(option_values(options.data)["lowerdir"])
    mounted: list[str] = []
    try:
        with user_namespace(Owners(options.uid_map, options.gid_map)) as namespace:
            for number, layer in enumerate(layers):
                target = os.path.join(scratch, str(number))
                os.mkdir(target)
                _attach(layer, target, namespace, recursive=False)
                mounted.append(target)
        yield [
            f"lowerdir={':'.join(mounted)}" if option.startswith("lowerdir=") else option
            for option in options.data
        ]
    finally:
        for target in reversed(mounted):
            with contextlib.suppress(OSError):
                syscalls.umount(target, syscalls.MNT_DETACH)
        shutil.rmtree(scratch, ignore_errors=True)


def _attach(source: str, target: str, namespace: int, *, recursive: bool) -> None:
    try:
        attach_clone(source, target, recursive=recursive, user_namespace=namespace)
    except OSError as error:
        raise Internal(
            f"idmapped mount of {source}: {error.strerror}; the kernel or this file system "
            "has none, use a snapshotter without uidmap and gidmap options"
        ) from error


@contextlib.contextmanager
def user_namespace(owners: Owners) -> Iterator[int]:
    """Yield a descriptor of a user namespace with the maps; a short-lived child owns it.

    Raises:
        InvalidArgument: only one of the two maps is given.
        Internal: the kernel makes none.
    """
    if not (owners.uids and owners.gids):
        raise InvalidArgument("mount options uidmap and gidmap need each other")
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"?")
        if child.stdout.read(1) != b"?":  # the echo means that it has unshared
            raise Internal("idmapped mount: no user namespace can be made")
        for name, maps in (("uid_map", owners.uids), ("gid_map", owners.gids)):
            _write(f"/proc/{child.pid}/{name}", maps)
        namespace = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        child.stdin.close()
    try:
        yield namespace
    finally:
        os.close(namespace)


def _write(path: str, maps: Sequence[IdMap]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "".join(f"{m.container} {m.host} {m.count}\n" for m in maps).encode())
    finally:
        os.close(fd)
