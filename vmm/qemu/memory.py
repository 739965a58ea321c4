"""The guest's memory on QEMU's command line: what it lies in, its nodes, its room to grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import InvalidConfig
from vmm.spec import MIB, PmemDevice

if TYPE_CHECKING:
    from vmm.qemu.plan import Plan
    from vmm.spec import VmSpec

MEMORY_BLOCK = 128 * MIB  # what the guest kernel adds at a time on x86
DIMM_SLOTS = 16
VIRTIO_MEM_ID = "vmem0"
_HUGE_PAGE = 2 * MIB


def hot_memory_bytes(spec: VmSpec) -> int:
    """Return the size of the hot-pluggable memory region, whole guest memory blocks."""
    return _round_up(spec.memory_limit - spec.memory_bytes)


def check(spec: VmSpec) -> None:
    """Raise unless the memory can be had as described.

    Raises:
        InvalidConfig: it names what contradicts what.
    """
    if spec.memory_file is not None:
        if spec.restored and spec.needs_shared_memory:
            raise InvalidConfig("a VM loaded from a memory file can't have vhost-user devices")
        if spec.hugepages or spec.numa:
            raise InvalidConfig("memory in a file can't be huge pages or several nodes")
    if spec.hugepages and spec.memory_bytes % _HUGE_PAGE:
        raise InvalidConfig("with hugepages, memory_bytes must be whole pages of 2 MiB")
    if spec.numa:
        if spec.machine == "microvm":
            raise InvalidConfig("numa: microvm has no NUMA nodes")
        if any(node.memory_bytes % (_HUGE_PAGE if spec.hugepages else MIB) for node in spec.numa):
            raise InvalidConfig("numa: a node's memory must be whole MiB, or whole huge pages")
        if sum(node.vcpus for node in spec.numa) != spec.vcpu_limit:
            raise InvalidConfig(f"numa: the nodes don't share out {spec.vcpu_limit} CPUs")
        if sum(node.memory_bytes for node in spec.numa) != spec.memory_bytes:
            raise InvalidConfig("numa: the nodes don't share out the memory")


def memory_arguments(spec: VmSpec) -> list[str]:
    """Return the options for the memory the VM boots with."""
    size = f"size={spec.memory_bytes // MIB}M"
    hot = hot_memory_bytes(spec)
    pmem = _pmem_room(spec)
    if hot or pmem:
        # Alignment of each DIMM may cost up to a GiB of address space.
        dimms = spec.memory_hotplug == "dimm" or pmem
        spare = DIMM_SLOTS << 30 if dimms else 0
        maxmem = (spec.memory_bytes + hot + pmem + spare) // MIB
        # The guest looks at each slot, in ACPI's byte code; virtio-mem needs none, QEMU one.
        size += f",slots={DIMM_SLOTS if dimms else 1},maxmem={maxmem}M"
    if spec.numa:
        return ["-m", size, *_numa(spec)]
    if spec.memory_file is not None:
        share = "off" if spec.restored else "on"
        path = str(spec.memory_file).replace(",", ",,")
        memory = f"memory-backend-file,id=mem,size={spec.memory_bytes // MIB}M"
        return ["-m", size, "-object", f"{memory},share={share},mem-path={path}"]
    return ["-m", size, "-object", memory_object("mem", spec.memory_bytes, spec)]


def memory_backend_type(spec: VmSpec) -> str:
    """Return the QOM type of the objects that hold the guest's memory."""
    in_memfd = spec.needs_shared_memory or spec.hugepages
    return "memory-backend-memfd" if in_memfd else "memory-backend-ram"


def memory_object(
    name: str, size: int, spec: VmSpec, *, reserve: bool = True, host_nodes: tuple[int, ...] = ()
) -> str:
    """Return the object that holds a part of the memory, as an ``-object`` argument."""
    share = "on" if spec.needs_shared_memory else "off"
    text = f"{memory_backend_type(spec)},id={name},size={size // MIB}M,share={share}"
    if spec.hugepages:
        # All of it now: a page that can't be had later would end the VM.
        text += ",hugetlb=on,hugetlbsize=2M,prealloc=on"
    if host_nodes:
        text += "".join(f",host-nodes={node}" for node in host_nodes) + ",policy=bind"
    return text if reserve or spec.hugepages else f"{text},reserve=off"


def virtio_mem_arguments(spec: VmSpec, plan: Plan) -> list[str]:
    """Return the options for a region that memory can be plugged into."""
    hot = hot_memory_bytes(spec)
    if not hot or spec.memory_hotplug != "virtio-mem":
        return []
    slot = plan.take_slot(VIRTIO_MEM_ID)
    device = f"virtio-mem-pci,id={VIRTIO_MEM_ID},memdev=hotmem,requested-size=0"
    return [
        *("-object", memory_object("hotmem", hot, spec, reserve=False)),
        *("-device", f"{device},bus={plan.bus},addr={slot:02x}"),
    ]


def _numa(spec: VmSpec) -> list[str]:
    arguments: list[str] = []
    cpu = 0
    for number, node in enumerate(spec.numa):
        memory = memory_object(f"mem{number}", node.memory_bytes, spec, host_nodes=node.host_nodes)
        option = f"node,nodeid={number},memdev=mem{number}"
        if node.vcpus:
            option += f",cpus={cpu}-{cpu + node.vcpus - 1}"
            cpu += node.vcpus
        arguments += ["-object", memory, "-numa", option]
    return arguments


def _pmem_room(spec: VmSpec) -> int:
    devices = [d for d in (spec.image, *spec.devices) if isinstance(d, PmemDevice)]
    return sum(_round_up(d.path.stat().st_size) for d in devices if d.path.is_file())


def _round_up(size: int) -> int:
    return -(-size // MEMORY_BLOCK) * MEMORY_BLOCK
