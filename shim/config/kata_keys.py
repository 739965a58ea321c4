"""Keys of Kata's configuration files that have no effect here yet.

A file written for Kata loads: each of these keys gives a warning unless its value asks
for nothing (the values listed, mostly Kata's own "off"). A key that is in neither this
table nor the model is an error, since it is most likely misspelt.
Source: the ``configuration-*.toml.in`` files of both Kata runtimes, release 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Inert = tuple[Any, ...] | None
"""The values that ask for nothing; None when no value can be of consequence."""

_OFF: Inert = (False, 0, "", [])

_HYPERVISOR: dict[str, Inert] = {
    **dict.fromkeys(
        (
            "block_device_cache_set",
            "confidential_guest",
            "enable_iommu_platform",
            "enable_iothreads",
            "enable_mem_prealloc",
            "enable_template",
            "enable_vhost_user_store",
            "experimental_force_guest_pull",
            "extra_monitor_socket",
            "firmware",
            "firmware_volume",
            "guest_extension_images",
            "guest_memory_dump_paging",
            "indep_iothreads",
            "kernel_verity_params",
            "launch_process_timeout",
            "machine_accelerators",
            "measurement_algo",
            "memory_offset",
            "net_rate_limiter_bw_max_rate",
            "net_rate_limiter_bw_one_time_burst",
            "net_rate_limiter_ops_max_rate",
            "net_rate_limiter_ops_one_time_burst",
            "pcie_switch_port",
            "pflashes",
            "remote_hypervisor_socket",
            "remote_hypervisor_timeout",
            "sev_snp_guest",
            "snp_certs_path",
            "snp_guest_policy",
            "snp_id_auth",
            "snp_id_block",
            "tdx_quote_generation_service_socket_port",
            "use_legacy_serial",
            "vhost_user_reconnect_timeout_sec",
            "virtio_fs_cache_size",
        ),
        _OFF,
    ),
    "cpu_features": ("", "pmu=off"),
    "default_bridges": (0, 1),
    "disable_guest_selinux": None,
    # vm_rootfs_driver says what the guest image is.
    "disable_image_nvdimm": None,
    "disable_nesting_checks": None,
    "disable_selinux": None,
    "entropy_source": ("", "/dev/urandom"),
    "hotplug_vfio_on_root_bus": (False,),
    "memory_slots": (0, 10),
    "overhead_vcpus": (0, 0.2),
    "rootfs_type": ("", "erofs"),
    "template_path": ("", "/run/vc/vm/template"),
    # These only fence in pod annotations that have no effect yet.
    "valid_entropy_sources": None,
    "valid_vhost_user_store_paths": None,
    "vhost_user_store_path": ("", "/var/run/kata-containers/vhost-user"),
}

# Kata's sections have one set of keys, whoever the hypervisor is.
_SECTORS: dict[str, Inert] = dict.fromkeys(
    ("block_device_logical_sector_size", "block_device_physical_sector_size"), _OFF
)
_QEMU_ONLY: dict[str, Inert] = {
    # Disks are virtio-blk on what the machine has: PCI, or MMIO.
    "block_device_driver": ("", "virtio-blk", "virtio-blk-pci", "virtio-blk-mmio", "virtio-mmio"),
    "disable_vhost_net": None,
    "enable_iommu": _OFF,
    "enable_numa": _OFF,
    "guest_memory_dump_path": _OFF,
    "rootless": _OFF,
    "vm_rootfs_driver": ("", "virtio-blk-pci"),
    "machine_type": None,
    "msize_9p": None,
    "numa_mapping": _OFF,
    "network_queues": (0, 1),
    "pcie_root_port": (0,),
    "seccomp_sandbox": _OFF,
    "seccompsandbox": _OFF,
}
_SHARING_ONLY: dict[str, Inert] = dict.fromkeys(
    (
        "valid_virtio_fs_daemon_paths",
        "virtio_fs_cache",
        "virtio_fs_daemon",
        "virtio_fs_extra_args",
        "virtio_fs_queue_size",
    ),
    None,
) | dict.fromkeys(("cold_plug_vfio", "hot_plug_vfio"), ("", "no-port"))
_JAILER: dict[str, Inert] = {"jailer_path": _OFF, "valid_jailer_paths": None}

_AGENT: dict[str, Inert] = {
    **dict.fromkeys(
        (
            "cdh_api_timeout",
            "cdh_api_timeout_ms",
            "compact_disable",
            "compact_force_times",
            "compact_order",
            "compact_period_psi_percent_limit",
            "compact_period_secs",
            "compact_psi_percent_limit",
            "compact_sec_max",
            "compact_threshold",
            "create_container_timeout",
            "debug_console_enabled",
            "dial_timeout_ms",
            "enable_tracing",
            "mem_agent_enable",
            "memcg_disable",
            "memcg_eviction_psi_percent_limit",
            "memcg_eviction_run_aging_count_min",
            "memcg_period_psi_percent_limit",
            "memcg_period_secs",
            "memcg_swap",
            "memcg_swappiness_max",
            "reconnect_timeout_ms",
        ),
        _OFF,
    ),
    "log_level": ("", "info"),
}

_RUNTIME: dict[str, Inert] = {
    **dict.fromkeys(
        (
            "enable_pprof",
            "enable_tracing",
            "experimental",
            "guest_selinux_label",
            "jaeger_endpoint",
            "jaeger_password",
            "jaeger_user",
            "keep_abnormal",
            "pod_resource_api_sock",
            "use_passfd_io",
        ),
        _OFF,
    ),
    "agent_name": ("", "kata"),
    "log_level": ("", "info"),
    "name": ("", "virt_container"),
    "passfd_listener_port": (0, 1027),
}

NOT_YET: Mapping[str, Mapping[str, Inert]] = MappingProxyType(
    {
        "hypervisor.qemu": {**_HYPERVISOR, **_JAILER, "disable_seccomp": _OFF},
        "hypervisor.firecracker": {
            **_HYPERVISOR,
            **_QEMU_ONLY,
            **_SHARING_ONLY,
            **_SECTORS,
            "num_queues": (0, 1),
            "queue_size": (0, 128),
            "valid_jailer_paths": None,
        },
        "hypervisor.clh": {
            **_HYPERVISOR,
            **_QEMU_ONLY,
            **_JAILER,
            **_SECTORS,
            # It chooses the way of its I/O itself.
            "block_device_aio": ("", "auto", "io_uring", "threads"),
            "block_device_cache_noflush": _OFF,
            "disable_nested_virtualization": _OFF,
            "hypervisor_loglevel": (0, 1),
            "valid_ctlpaths": None,
        },
        "agent.kata": _AGENT,
        "runtime": _RUNTIME,
        "katapy": {},
    }
)
"""Section → key → the values that ask for nothing."""

SECTIONS_NOT_YET = frozenset(
    {
        "factory",
        "hypervisor.dragonball",
        "hypervisor.openvmm",
        "hypervisor.remote",
        "hypervisor.stratovirt",
        "image",
        "netmon",
        "proxy.kata",
        "shim.kata",
    }
)
"""Whole sections of Kata's that have no effect here yet."""

SECTION_ALIASES: Mapping[str, str] = MappingProxyType(
    # runtime-rs's name
    {"hypervisor.cloud-hypervisor": "hypervisor.clh"}
)
"""Another name of a section → its name in the model."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        # runtime-rs renamed it
        "hypervisor.qemu.seccomp_sandbox": "seccompsandbox",
    }
)
"""``section.key`` of the same meaning → the key's name in the model."""
