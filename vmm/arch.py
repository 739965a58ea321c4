"""The processor architectures a VM can have, and what each is called where.

An architecture other than the host's runs emulated. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from vmm.errors import InvalidConfig


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Args:
        name: as ``uname -m`` and QEMU's programs call it.
        debian: as Debian calls it.
        oci: as OCI images call it (``GOARCH``).
        kernel_package: Debian's kernel for it, the smallest one there is.
        machines: QEMU machine types we can drive, the default one first.
        console: guest device of the first serial port.
        reports_panic: whether its machines tell QEMU of a panic without a device for it.
        byte_order: of its numbers, as :data:`sys.byteorder` says it.
        rootfs: file system of the guest image.
        has_9p: whether that kernel can mount 9p.
        elf: whether the VMM wants the unpacked ELF kernel rather than Debian's file.
        emulated_cpu: CPU model under emulation.
        page_size: bytes of a page of that kernel's.
    """

    name: str
    debian: str
    oci: str
    kernel_package: str
    machines: tuple[str, ...]
    console: str
    elf: bool = False
    emulated_cpu: str = "max"
    reports_panic: bool = False
    byte_order: Literal["little", "big"] = "little"
    rootfs: Literal["erofs", "squashfs"] = "erofs"
    has_9p: bool = False
    page_size: int = 4096


_KNOWN = (
    Architecture(
        "x86_64",
        "amd64",
        "amd64",
        "linux-image-cloud-amd64",
        ("q35", "microvm", "pc"),
        "ttyS0",
        elf=True,
        # Told that string instructions are fast, kernel and C library copy by them, which
        # emulation does byte by byte.
        emulated_cpu="max,-erms,-fsrm",
    ),
    Architecture(
        "aarch64",
        "arm64",
        "arm64",
        "linux-image-cloud-arm64",
        ("virt",),
        "ttyAMA0",
        # The architected pointer authentication costs half the speed of emulation.
        emulated_cpu="max,pauth-impdef=on",
    ),
    Architecture(
        "ppc64le",
        "ppc64el",
        "ppc64le",
        "linux-image-powerpc64le",
        ("pseries",),
        "hvc0",
        emulated_cpu="power9",
        reports_panic=True,
        # Debian 12's kernel has pages of 64 KiB, with which it mounts no erofs of 4 KiB blocks.
        page_size=65536,
        rootfs="squashfs",
        has_9p=True,
    ),
    Architecture(
        "s390x",
        "s390x",
        "s390x",
        "linux-image-s390x",
        ("s390-ccw-virtio",),
        "ttysclp0",
        reports_panic=True,
        byte_order="big",
        has_9p=True,
    ),
    Architecture(
        "riscv64",
        "riscv64",
        "riscv64",
        "linux-image-riscv64",
        ("virt",),
        "ttyS0",
        emulated_cpu="rv64",
        has_9p=True,
    ),
)
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({a.name: a for a in _KNOWN})
"""By name as ``uname -m`` says it."""
MACHINES = tuple(dict.fromkeys(machine for arch in _KNOWN for machine in arch.machines))
"""QEMU machine types we can drive."""


def host_architecture() -> str:
    """Return the host's architecture as ``uname -m`` says it."""
    return os.uname().machine


def architecture(name: str = "") -> Architecture:
    """Return an architecture by any of its names; empty is the host's.

    Raises:
        InvalidConfig: no VM can have it.
    """
    wanted = name or host_architecture()
    for known in _KNOWN:
        if wanted in (known.name, known.debian, known.oci):
            return known
    raise InvalidConfig(
        f"no VM can have the architecture {wanted}: known are {', '.join(ARCHITECTURES)}"
    )
