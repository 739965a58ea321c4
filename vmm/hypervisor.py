"""The interface every VM backend offers, and the only part of one that the shim sees.

A backend is an asynchronous context manager around one VM. It knows nothing of
containers or of the agent's protocol: it hands out a byte stream to a guest port.

States: ``NEW`` → (enter the context) ``SPAWNED`` → (``boot``) ``RUNNING`` ⇄ ``PAUSED``
→ ``EXITED``. A restored VM goes from ``SPAWNED`` to ``PAUSED``. The state follows the
VMM's events, so a VM that stops by itself is seen. A call in the wrong state raises
:class:`~vmm.errors.InvalidState`, one that the capabilities rule out raises
:class:`~vmm.errors.Unsupported`, both before any I/O. When the VMM dies, whatever waits
on it raises :class:`~vmm.errors.VmmGone` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from vmm.errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import trio

    from vmm.broadcast import Subscription
    from vmm.events import Event, ExitReason, VmState
    from vmm.spec import AttachedDevice, Device, RateLimit, VmSpec

Recorder = Callable[[str, str | int], None]
"""``record(kind, value)``, called before a resource is made (a process: as soon as its
pid is known). Kinds: ``socket`` and ``file`` with a path, ``tree`` with a directory that goes
with all that is in it, ``mount`` with a mount point, ``process`` with a pid."""


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do, known before the VM runs and never changing afterwards.

    Each flag is honest: what is claimed works, what is not raises ``Unsupported``.
    Byte counts are in bytes. ``vmm`` names program and version, ``why_not`` says for a
    flag that is off what would turn it on.
    """

    transport: Literal["pci", "mmio", "ccw"]
    max_vcpus: int
    max_devices: int
    fs_share: bool = False
    fs_hot: bool = False
    ninep: bool = False
    block_hot: Literal["none", "swap", "add_remove"] = "none"
    block_resize: bool = False
    block_serial: bool = False
    net_hot: bool = False
    nic_by_fd: bool = False
    multi_queue: bool = False
    vcpu_up: bool = False
    vcpu_down: bool = False
    mem_up: bool = False
    mem_down: bool = False
    mem_granule: int = 0
    mem_max: int = 0
    balloon: bool = False
    free_page_reporting: bool = False
    pause: bool = False
    snapshot: Literal["none", "full", "diff"] = "none"
    restore_overrides: bool = False
    lazy_restore: bool = False
    vsock: Literal["none", "hybrid", "vhost"] = "none"
    serial_agent: bool = False
    console: bool = False
    initrd: bool = False
    firmware: bool = False
    pmem_cold: bool = False
    pmem_hot: bool = False
    vfio_cold: bool = False
    vfio_hot: bool = False
    rate_limit: Literal["none", "static", "dynamic"] = "none"
    counters: bool = False
    hugepages: bool = False
    guest_rescan_needed: bool = False
    guest_remove_first: bool = False
    event_stream: Literal["rich", "exit_only"] = "exit_only"
    reset_semantics: Literal["exit", "in_process"] = "exit"
    guest_panic_event: bool = False
    acpi_shutdown: bool = False
    jail: bool = False
    rootless: bool = False
    seccomp: bool = False
    live_migration: bool = False
    vmm: str = ""
    why_not: Mapping[str, str] = field(default_factory=dict)

    def has(self, feature: str) -> bool:
        """Whether the flag named ``feature`` is on."""
        return getattr(self, feature) not in (False, 0, "none")

    def require(self, feature: str, detail: str = "") -> None:
        """Raise ``Unsupported`` unless the flag named ``feature`` is on.

        Args:
            feature: a field of this class.
            detail: what would turn it on; without, ``why_not`` is asked.

        Raises:
            Unsupported: the flag is false, zero or ``"none"``.
        """
        if not self.has(feature):
            raise Unsupported(feature, detail or self.why_not.get(feature, ""), self.vmm)


@dataclass(frozen=True)
class Resized:
    """What a resize came to.

    Args:
        actual: virtual CPUs or bytes of memory the guest has now; may be less than asked
            when the guest would not give or take the rest.
        guest_must_online: the guest sees the new parts but must still switch them on.
    """

    actual: int
    guest_must_online: bool


class Hypervisor(Protocol):
    """One VM, from nothing to its end. See the module's text for states and errors."""

    spec: VmSpec
    exited: trio.Event
    exit_reason: ExitReason | None

    async def __aenter__(self) -> Hypervisor:
        """NEW → SPAWNED: start the VMM and reach its control channel.

        Raises:
            InvalidConfig: the spec is contradictory, or a file it names is missing.
            VmmGone: the VMM ended at once; the error holds what it wrote.
            ControlTimeout: it did not answer within ``spec.spawn_timeout``.
        """
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Any state: kill, reap and tidy up, shielded from cancellation."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this VM can do; from SPAWNED on."""
        ...

    @property
    def state(self) -> VmState:
        """The present state."""
        ...

    @property
    def pid(self) -> int:
        """Process id of the VMM; from SPAWNED on."""
        ...

    @property
    def devices(self) -> Mapping[str, AttachedDevice]:
        """Devices by id; from SPAWNED on."""
        ...

    async def boot(self) -> None:
        """SPAWNED → RUNNING: let the guest run; does not wait for the agent."""
        ...

    async def dial_agent(self, timeout: float) -> trio.SocketStream:
        """RUNNING: a byte stream to the guest agent, ready for its protocol.

        Args:
            timeout: seconds to wait for the guest to answer.

        Raises:
            GuestTimeout: no answer in time; the text has the last console lines.
            VmmGone: the VM ended meanwhile.
        """
        ...

    async def attach(self, device: Device, timeout: float = 10.0) -> AttachedDevice:
        """RUNNING, PAUSED: hot-plug a device.

        Raises:
            Unsupported: no hot-plug of this kind.
            Conflict: the id is in use.
            LimitExceeded: no free slot.
            ApiError: the VMM refused it; everything half-made is undone.
        """
        ...

    async def detach(self, handle: AttachedDevice, timeout: float) -> None:
        """RUNNING: unplug a device; returns when the guest let go and it is gone.

        On a timeout the device stays reserved and is released whenever the guest lets go.

        Raises:
            NotFound: no such device.
            Conflict: the device was there at boot.
            GuestTimeout: the guest did not let go in ``timeout`` seconds, or refused.
        """
        ...

    async def resize_block(self, handle: AttachedDevice, size_bytes: int) -> None:
        """RUNNING, PAUSED: tell the guest a disk's new size."""
        ...

    async def set_rate_limit(self, handle: AttachedDevice, *limits: RateLimit | None) -> None:
        """RUNNING, PAUSED: change how fast a device may go.

        Args:
            handle: a disk, pmem device or network card.
            limits: the new limit; for a network card that of receiving and of sending.

        Raises:
            Unsupported: ``rate_limit`` is not ``"dynamic"``.
            NotFound: no such device.
            InvalidConfig: this device has no limits, or another number of them.
        """
        ...

    async def counters(self) -> dict[str, dict[str, int]]:
        """RUNNING, PAUSED: what the VMM counts, by device and name, since boot."""
        ...

    async def own_counters(self) -> dict[str, dict[str, int]]:
        """RUNNING, PAUSED: what the VMM counts about itself, by its own groups and names.

        Empty for one that counts nothing but what :meth:`counters` has.
        """
        ...

    @property
    def agent_url(self) -> str:
        """Where the agent is reached, from SPAWNED on.

        ``unix://PATH`` for a virtio-serial port, ``vsock://CID:PORT``, or
        ``hvsock://PATH:PORT`` for the unix socket of a hybrid vsock.
        """
        ...

    async def resize_vcpus(self, count: int, timeout: float) -> Resized:
        """RUNNING: set the number of virtual CPUs."""
        ...

    async def resize_memory(self, size_bytes: int, timeout: float) -> Resized:
        """RUNNING: set the memory, rounded up to the granule."""
        ...

    async def set_balloon(self, size_bytes: int) -> None:
        """RUNNING: how much memory the guest should keep; it moves there in its own time."""
        ...

    async def pause(self) -> None:
        """RUNNING → PAUSED: stop the virtual CPUs."""
        ...

    async def resume(self) -> None:
        """PAUSED → RUNNING."""
        ...

    async def snapshot(self, target: Path) -> None:
        """PAUSED: save the VM's state into the directory ``target``.

        Raises:
            Conflict: a device is attached that can't be saved.
        """
        ...

    async def restore(self, source: Path) -> None:
        """SPAWNED → PAUSED: load what ``snapshot`` saved, in place of ``boot``."""
        ...

    async def vcpu_threads(self) -> dict[int, int]:
        """RUNNING, PAUSED: host thread id of each virtual CPU."""
        ...

    def console_tail(self) -> list[str]:
        """Any state: last lines of the guest's console."""
        ...

    def subscribe(self) -> Subscription[Event]:
        """Any state: events from now on, ending with ``Exited``."""
        ...

    async def shutdown(self, grace: float) -> ExitReason:
        """Any state: ask the guest to power off, kill it after ``grace`` seconds."""
        ...

    async def kill(self) -> ExitReason:
        """Any state: end the VMM at once and wait until it is gone. Idempotent."""
        ...
