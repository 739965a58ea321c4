"""What becomes of each mount of a spec when its container runs in a VM.

Source: OCI runtime-spec config.md "Mounts"; what Kata users expect, reference O17, D12 to D19.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shim.errors import InvalidArgument

GUEST_SHM = "/run/kata-containers/sandbox/shm"
"""The pod's /dev/shm inside the guest."""

SOCKET = "uds"
"""Type of a mount that leads to a unix socket of the host (shimtest's UDS suite)."""

_BINDS = frozenset((SOCKET, "directvol", "spdkvol", "spoolvol", "vfiovol"))
"""Types that are bind mounts in the guest; those of Kata's direct-assigned volumes too."""

_FOR_KATA = ("io.katacontainers.fs-opt.", "io.katacontainers.volume=")
_GUEST_TREES = ("/proc", "/sys")
_GUEST_DEVICES = frozenset(
    f"/dev/{name}"
    for name in (
        *("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts"),
        *("shm", "mqueue", "hugepages", "fuse", "net/tun", "kvm"),
    )
)
_READ_ONLY = frozenset(("ro", "rro"))
_PROPAGATION = frozenset(
    prefix + word for prefix in ("", "r") for word in ("private", "slave", "shared", "unbindable")
)


IdMaps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class HostMount:
    """A bind mount whose source lies on the host and has to reach the guest.

    Attributes:
        index: its place in the spec's list of mounts.
        source: absolute host path.
        destination: path inside the container.
        readonly: the container may not write to it.
        readonly_below: nor to what is mounted below the source.
        uid_maps: of an id-mapped mount: container id, host id and how many.
        gid_maps: the same of groups.
        fstype: its type, where it is a disk by its options.
        options: and these.
        recursive: mounts below the source come with it.
        propagation: flag words such as ``rslave``, in order.
    """

    index: int
    source: str
    destination: str
    readonly: bool
    recursive: bool
    propagation: tuple[str, ...]
    readonly_below: bool = False
    uid_maps: IdMaps = ()
    gid_maps: IdMaps = ()
    fstype: str = ""
    options: tuple[str, ...] = ()


def host_mounts(spec: Mapping[str, Any]) -> list[HostMount]:
    """List the mounts of ``spec`` that need a path shared with the guest.

    Raises:
        InvalidArgument: a bind mount without an absolute source.
    """
    found = []
    for index, mount in enumerate(spec.get("mounts", ())):
        if not (is_bind(mount) or is_disk(mount)) or served_by_guest(mount):
            continue
        source = mount.get("source", "")
        if not source.startswith("/"):
            raise InvalidArgument(
                f"mount {mount.get('destination')}: source {source!r} must be an absolute path"
            )
        options = mount.get("options", ())
        found.append(
            HostMount(
                index=index,
                source=source,
                destination=mount["destination"],
                readonly=not _READ_ONLY.isdisjoint(options),
                recursive="rbind" in options,
                propagation=tuple(word for word in options if word in _PROPAGATION),
                readonly_below="rro" in options,
                uid_maps=_id_maps(mount, "uidMappings"),
                gid_maps=_id_maps(mount, "gidMappings"),
                fstype=mount.get("type", "") if is_disk(mount) else "",
                options=tuple(options) if is_disk(mount) else (),
            )
        )
    return found


def _id_maps(mount: Mapping[str, Any], key: str) -> IdMaps:
    maps = mount.get(key) or ()
    return tuple((m.get("containerID", 0), m.get("hostID", 0), m.get("size", 0)) for m in maps)


def is_bind(mount: Mapping[str, Any]) -> bool:
    """Whether it is a bind mount, by type or by option, as runc sees it.

    ``uds``, containerd's nerdbox's word for a socket of the host, is one as well, and so are
    the words of Kata's runtime-rs for direct-assigned volumes.
    """
    return mount.get("type") in ("bind", *_BINDS) or not {"bind", "rbind"}.isdisjoint(
        mount.get("options", ())
    )


def is_disk(mount: Mapping[str, Any]) -> bool:
    """Whether its options say that it is a disk, in Kata's words (``fs-opt``, ``volume=``)."""
    return any(option.startswith(_FOR_KATA) for option in mount.get("options", ()))


def served_by_guest(mount: Mapping[str, Any]) -> bool:
    """Whether a bind mount is about the kernel or its devices, which are the guest's own."""
    if is_pod_shm(mount):
        return True
    source = _clean(mount.get("source", ""))
    return _is_below(source, _GUEST_TREES) or source in _GUEST_DEVICES or source == "/dev"


def is_pod_shm(mount: Mapping[str, Any]) -> bool:
    """Whether a bind mount is of the shared memory that a client made for the pod.

    Clients name it ``shm``; another directory there is a volume, as is kubelet's of that name.
    """
    source = _clean(mount.get("source", ""))
    if _clean(mount.get("destination", "")) != "/dev/shm" or not is_bind(mount):
        return False
    volume = "/kubernetes.io~" in source or "/volume-subpaths/" in source
    return source == "/dev/shm" or (posixpath.basename(source) == "shm" and not volume)


def guest_mounts(
    spec: Mapping[str, Any], sources: Mapping[int, str | None], *, shm: str = GUEST_SHM
) -> list[dict[str, Any]]:
    """Rewrite the mounts of ``spec`` for the guest.

    Args:
        spec: the host's spec.
        sources: guest path for each :class:`HostMount`, by its index; a mount whose path
            is None became a device and is left out.
        shm: the guest's directory for a bound /dev/shm.

    Raises:
        InvalidArgument: a host mount without a guest path.
    """
    result = []
    for index, mount in enumerate(spec.get("mounts", ())):
        if "destination" not in mount:
            raise InvalidArgument(f"mounts[{index}]: destination is missing")
        # Id maps and SELinux contexts are about the host's file systems.
        rewritten = {k: v for k, v in mount.items() if k not in ("uidMappings", "gidMappings")}
        if "options" in mount:
            # The host sees to what is mounted below; in the guest it is one file system.
            rewritten["options"] = [
                "ro" if option == "rro" else option
                for option in mount["options"]
                if not option.startswith("context=")
            ]
        if not (is_bind(mount) or is_disk(mount)):
            result.append(rewritten)
            continue
        if is_pod_shm(mount):
            rewritten["source"] = shm
            rewritten["options"] = ["rbind"] + (["ro"] if "ro" in mount.get("options", ()) else [])
        elif _is_below(_clean(mount.get("source", "")), ("/sys/fs/cgroup",)):
            rewritten = _cgroup_mount(mount)
        elif not served_by_guest(mount):
            if index not in sources:
                raise InvalidArgument(
                    f"mount {mount['destination']}: {mount.get('source')} is not shared with the VM"
                )
            if sources[index] is None:
                continue
            rewritten["source"] = sources[index]
            if is_disk(mount):
                # The guest has mounted it, with its options.
                read_only = not _READ_ONLY.isdisjoint(mount["options"])
                rewritten["type"] = "bind"
                rewritten["options"] = ["rbind"] + ["ro"] * read_only
            elif mount.get("type") in _BINDS:
                rewritten["type"] = "bind"
                rewritten["options"] = ["rbind", *mount.get("options", ())]
        result.append(rewritten)
    return result


def follow_guest(spec: dict[str, Any], index: int) -> None:
    """Have a container see what is mounted below one of its mounts later, in the guest.

    Args:
        spec: the spec, which is changed.
        index: the mount's place in its list.
    """
    mount = spec["mounts"][index]
    options = list(mount.get("options", ()))
    if not any(word.endswith(("shared", "slave")) for word in options):
        options = [word for word in options if word not in _PROPAGATION] + ["rslave"]
    spec["mounts"][index] = {**mount, "options": options}
    # Nothing arrives in a mount namespace that cuts itself off first.
    linux = spec.setdefault("linux", {})
    if not str(linux.get("rootfsPropagation", "")).endswith(("shared", "slave")):
        linux["rootfsPropagation"] = "rslave"


def _cgroup_mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    options = ["nosuid", "noexec", "nodev", "relatime"]
    if "ro" in mount.get("options", ()):
        options.append("ro")
    return {
        "destination": mount["destination"],
        "type": "cgroup",
        "source": "cgroup",
        "options": options,
    }


def _clean(path: str) -> str:
    return posixpath.normpath(path) if path else ""


def _is_below(path: str, trees: tuple[str, ...]) -> bool:
    return any(path == tree or path.startswith(tree + "/") for tree in trees)
