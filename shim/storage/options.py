"""Mount options as containerd writes them, parsed into what mount(2) takes.

Source: containerd core/mount (mount_linux.go); mount(2); mount(8) for flag words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shim.errors import InvalidArgument

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

_SET = {
    "bind": MS_BIND,
    "dirsync": MS_DIRSYNC,
    "mand": MS_MANDLOCK,
    "noatime": MS_NOATIME,
    "nodev": MS_NODEV,
    "nodiratime": MS_NODIRATIME,
    "noexec": MS_NOEXEC,
    "nosuid": MS_NOSUID,
    "rbind": MS_BIND | MS_REC,
    "relatime": MS_RELATIME,
    "remount": MS_REMOUNT,
    "ro": MS_RDONLY,
    "strictatime": MS_STRICTATIME,
    "sync": MS_SYNCHRONOUS,
}
_CLEAR = {
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "defaults": 0,
    "dev": MS_NODEV,
    "diratime": MS_NODIRATIME,
    "exec": MS_NOEXEC,
    "nomand": MS_MANDLOCK,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}


@dataclass(frozen=True, slots=True)
class Mount:
    """One entry of a Create request's ``rootfs``.

    Attributes:
        type: file system type, ``bind`` or ``overlay`` among them.
        source: device, directory, image file or name.
        target: directory below the root file system, empty for the root itself.
        options: words and ``key=value`` pairs.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdMap:
    """``count`` ids from ``container`` on appear as those from ``host`` on."""

    container: int
    host: int
    count: int


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose files are whose, on their way from one user namespace to another."""

    uids: tuple[IdMap, ...]
    gids: tuple[IdMap, ...]

    def uid(self, number: int) -> int:
        """What a user id appears as; as it is when there is no mapping for it."""
        return _mapped(number, self.uids)

    def gid(self, number: int) -> int:
        """What a group id appears as."""
        return _mapped(number, self.gids)


def _mapped(number: int, maps: tuple[IdMap, ...]) -> int:
    for entry in maps:
        if 0 <= number - entry.container < entry.count:
            return entry.host + number - entry.container
    return number


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Parsed options.

    Attributes:
        flags: MS_ flags of mount(2).
        propagation: MS_ flags, each for a mount(2) call of its own, in order.
        data: options for the file system, in order.
        loop: the source is an image file to put a loop device on.
        direct_io: the loop device shall bypass the page cache.
        uid_map: user id mappings of an idmapped mount.
        gid_map: group id mappings of an idmapped mount.
    """

    flags: int = 0
    propagation: tuple[int, ...] = ()
    data: tuple[str, ...] = ()
    loop: bool = False
    direct_io: bool = False
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    read_only: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "read_only", bool(self.flags & MS_RDONLY))


def parse_options(options: Sequence[str]) -> MountOptions:
    """Parse the options of a mount.

    Raises:
        InvalidArgument: an ``X-containerd.`` directive, which only containerd's mount
            manager can carry out, or a malformed id mapping.
    """
    flags = 0
    loop = direct_io = False
    propagation: list[int] = []
    data: list[str] = []
    maps: dict[str, tuple[IdMap, ...]] = {}
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option == "loop":
            loop = True
        elif option in ("direct-io", "direct_io"):
            direct_io = True
        elif option.startswith(("uidmap=", "gidmap=")):
            key, _, text = option.partition("=")
            maps[key] = _id_maps(option, text)
        elif option.startswith("X-containerd."):
            raise InvalidArgument(
                f"mount option {option!r} is for containerd's mount manager and was not resolved"
            )
        elif option:
            data.append(option)
    if direct_io and not loop:
        raise InvalidArgument("mount option 'direct-io' needs 'loop'")
    return MountOptions(
        flags=flags,
        propagation=tuple(propagation),
        data=tuple(data),
        loop=loop,
        direct_io=direct_io,
        uid_map=maps.get("uidmap", ()),
        gid_map=maps.get("gidmap", ()),
    )


def without_propagation(options: Sequence[str]) -> tuple[str, ...]:
    """Leave out how a mount's events spread."""
    return tuple(option for option in options if option not in _PROPAGATION)


def option_values(data: Sequence[str]) -> Mapping[str, str]:
    """Index ``key=value`` data by key; the last one wins, as in the kernel."""
    return {key: value for key, _, value in (option.partition("=") for option in data)}


def _id_maps(option: str, text: str) -> tuple[IdMap, ...]:
    maps = []
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise InvalidArgument(f"mount option {option!r}: want CONTAINER:HOST:COUNT")
        maps.append(IdMap(*map(int, numbers)))
    return tuple(maps)
