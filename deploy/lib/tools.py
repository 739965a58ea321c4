"""Newer programs than the host's, unpacked beside the system: what tests run against."""

from __future__ import annotations

from deploy.lib.apt import Unpacked, fetch_debs

QEMU_RELEASES = ("trixie", "sid")
"""Debian releases whose QEMU the tests run against, besides the host's own."""


def fetch_qemu(release: str) -> Unpacked:
    """QEMU for the host's architecture; the program is /usr/bin/qemu-system-x86_64."""
    return fetch_debs(release, ["qemu-system-x86"], ["/usr/bin/qemu-system-x86_64"])


FOREIGN_QEMU = {
    "ppc64le": ("bookworm", "qemu-system-ppc", "qemu-system-ppc64"),
    "riscv64": ("bookworm", "qemu-system-misc", "qemu-system-riscv64"),
    "s390x": ("bookworm", "qemu-system-misc", "qemu-system-s390x"),
}
"""Release, package and program of the QEMU for a guest's architecture, by ``uname -m``."""


def fetch_foreign_qemu(architecture: str) -> Unpacked:
    """QEMU for an architecture other than the host's, as /usr/bin/ and its program's name."""
    release, package, name = FOREIGN_QEMU[architecture]
    return fetch_debs(release, [package], [f"/usr/bin/{name}"])


def fetch_squashfs_tools() -> Unpacked:
    """What packs a guest image for kernels that mount no erofs of ours, as /usr/bin/mksquashfs."""
    return fetch_debs("bookworm", ["squashfs-tools"], ["/usr/bin/mksquashfs"])


def fetch_erofs_utils() -> Unpacked:
    """A mkfs.erofs that makes layers of tar archives (1.7 or newer), as /usr/bin/mkfs.erofs."""
    return fetch_debs("trixie", ["erofs-utils"], ["/usr/bin/mkfs.erofs"])


def fetch_virtiofsd() -> Unpacked:
    """The virtiofsd that is written in Rust, as /usr/libexec/virtiofsd."""
    return fetch_debs("trixie", ["virtiofsd"], ["/usr/libexec/virtiofsd"])


def fetch_vhost_device_vsock() -> Unpacked:
    """The vsock daemon for hosts without vhost-vsock, as /usr/bin/vhost-device-vsock."""
    return fetch_debs("sid", ["vhost-device-vsock"], ["/usr/bin/vhost-device-vsock"])


CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
"""The CNI plugins that the tests' pod networks are made with, in /usr/lib/cni."""


def fetch_cni_plugins() -> Unpacked:
    """The reference CNI plugins."""
    programs = [f"/usr/lib/cni/{name}" for name in CNI_PLUGINS]
    return fetch_debs("bookworm", ["containernetworking-plugins"], programs)


def fetch_passt() -> Unpacked:
    """A network that is served over vhost-user, as /usr/bin/passt."""
    # It executes itself anew in the form for the CPU.
    return fetch_debs("trixie", ["passt"], ["/usr/bin/passt", "/usr/bin/passt.avx2"])


def fetch_slirp4netns() -> Unpacked:
    """The program behind ``host_network = "proxy"``, as /usr/bin/slirp4netns."""
    return fetch_debs("bookworm", ["slirp4netns"], ["/usr/bin/slirp4netns"])
