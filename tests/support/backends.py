"""The VMM backends as tests' parameters: programs, real or stand-in, and their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.standins.install import provide

KINDS = ("qemu", "clh", "firecracker")
"""One of each VMM."""

VARIANTS = ("firecracker with PCI", "jailed firecracker")


@dataclass(frozen=True)
class Backend:
    """A VMM that a test is about.

    Args:
        kind: what the test's parameter says.
        config: a section of katapy's configuration.
        real: whether the VMM is the real one.
    """

    kind: str
    config: str
    real: bool

    @property
    def shares(self) -> bool:
        """Whether it shares directories of the host with the guest."""
        return "firecracker" not in self.kind


def make_backend(kind: str, programs: Path, vsock_daemon: Path) -> Backend:
    """Find or make a backend's programs; says in the test's output which they are.

    Args:
        kind: one of those above.
        programs: where stand-ins are put.
        vsock_daemon: the vhost-device-vsock that stand-ins use.
    """
    if kind == "qemu":
        print("qemu: real")
        return Backend(kind, "[hypervisor.qemu]", real=True)
    name, program = ("clh", "cloud-hypervisor") if kind == "clh" else ("firecracker",) * 2
    found = provide(program, programs, vsock_daemon)
    print(f"{program}: {'real' if found.real else 'stand-in'}, {found.path}")
    lines = [f"[hypervisor.{name}]", f'path = "{found.path}"']
    if kind == "firecracker with PCI":
        lines.append("enable_pci = true")
    if kind == "jailed firecracker":
        jailer = provide("jailer", programs, vsock_daemon)
        lines.append(f'jailer_path = "{jailer.path}"')
    return Backend(kind, "\n".join(lines), found.real)
