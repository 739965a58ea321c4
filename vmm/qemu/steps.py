"""The steps that make a QEMU device, the same for cold and hot plug.

A step's arguments are the same as a QMP command and as a JSON command-line option, so
what boots with a VM and what is added to it later can't drift apart. Values are typed
as QEMU 9.2 and later demand (numbers as numbers, switches as booleans).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.qemu.machines import Transport

# virtio devices that QEMU serves itself: another process would have to ask it for each
# translation.
_TRANSLATED = frozenset(f"virtio-{kind}-pci" for kind in ("9p", "balloon", "blk", "net", "rng"))
IOMMU_OPTIONS = "disable-legacy=on,iommu_platform=on"
# QMP command → command-line option that takes the same arguments as JSON.
_JSON_OPTIONS = {
    "blockdev-add": "-blockdev",
    "object-add": "-object",
    "netdev_add": "-netdev",
    "device_add": "-device",
}


@dataclass(frozen=True)
class Step:
    """One QMP command, and the one that takes it back.

    Args:
        command: QMP command; ``fsdev`` and ``chardev`` exist on the command line too.
        arguments: its arguments.
        undo: command and arguments that release what the step made. For a device it
            only asks the guest to let go.
    """

    command: str
    arguments: dict[str, Any]
    undo: tuple[str, dict[str, Any]] | None = None

    def options(self) -> list[str]:
        """Return the step as command-line arguments."""
        if option := _JSON_OPTIONS.get(self.command):
            return [option, json.dumps(self.arguments, separators=(",", ":"))]
        if self.command == "chardev-add":
            return ["-chardev", _chardev_option(self.arguments)]
        if self.command == "fsdev":
            return ["-fsdev", key_values(**self.arguments)]
        raise ValueError(f"{self.command} has no command-line form")


@dataclass(frozen=True)
class Recipe:
    """All steps for one device, the front-end (``device_add``) last.

    Args:
        name: QEMU id of the front-end.
        steps: what to do in order.
        needs_slot: the front-end takes a PCI slot, an MMIO transport or a device number.
    """

    name: str
    steps: tuple[Step, ...]
    needs_slot: bool = True

    def at(self, **place: object) -> Recipe:
        """Return the recipe with the front-end put at a place, as QEMU spells it."""
        *rest, front = self.steps
        placed = {**front.arguments, **place}
        return replace(self, steps=(*rest, replace(front, arguments=placed)))

    def behind_iommu(self) -> Recipe:
        """Return the recipe with a front-end that goes through the guest's IOMMU, if it can."""
        *rest, front = self.steps
        if front.arguments.get("driver") not in _TRANSLATED or self._has_daemon:
            return self
        arguments = {**front.arguments, "disable-legacy": "on", "iommu_platform": True}
        return replace(self, steps=(*rest, replace(front, arguments=arguments)))

    @property
    def _has_daemon(self) -> bool:
        return any(step.arguments.get("type") == "vhost-user" for step in self.steps)

    @property
    def undo(self) -> list[tuple[str, dict[str, Any]]]:
        """Commands that release the back-ends once the front-end is gone, last made first."""
        return [step.undo for step in reversed(self.steps[:-1]) if step.undo is not None]


def device_step(name: str, driver: str, options: dict[str, Any]) -> Step:
    """Return the step that makes a front-end, to be placed by :meth:`Recipe.at`."""
    arguments = {"driver": driver, "id": name, **options}
    return Step("device_add", arguments, ("device_del", {"id": name}))


def virtio_step(
    name: str, kind: str, transport: Transport, options: dict[str, Any], family: str = "virtio"
) -> Step:
    """Return the step that makes a virtio front-end on the machine's transport."""
    return device_step(name, virtio_driver(kind, transport, family), options)


def virtio_driver(kind: str, transport: Transport, family: str = "virtio") -> str:
    """Return what QEMU calls a virtio device on a transport."""
    return f"{family}-{kind}-{'device' if transport == 'mmio' else transport}"


def chardev_step(name: str, path: str) -> Step:
    """Return the step that connects to a daemon's unix socket."""
    address = {"type": "unix", "data": {"path": path}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    return Step("chardev-add", {"id": name, "backend": backend}, ("chardev-remove", {"id": name}))


def _chardev_option(arguments: dict[str, Any]) -> str:
    path = arguments["backend"]["data"]["addr"]["data"]["path"]
    return key_values("socket", id=arguments["id"], path=path)


def key_values(*words: str, **values: str) -> str:
    """Render QEMU's key=value syntax, in which a comma in a value is doubled."""
    if driver := values.pop("driver", ""):
        words = (driver, *words)
    pairs = [f"{key}={value.replace(',', ',,')}" for key, value in values.items()]
    return ",".join([*words, *pairs])
