"""Pod annotations: which may do what, and what they become."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.config.hypervisors import Firecracker, Qemu
from shim.config.model import Config
from shim.config.shared_mount import SharedMount
from shim.errors import KatapyError
from shim.pod.annotations import PREFIXES, annotated
from shim.ttrpc import status

HYPERVISOR = "io.katacontainers.config.hypervisor."
ALL = Config(hypervisor=Qemu(enable_annotations=(".*",), kernel_params="a=b"))


def with_(config: Config, **annotations: str) -> Qemu:
    found = annotated(config, {HYPERVISOR + k: v for k, v in annotations.items()}, no_warning)
    assert isinstance(found.hypervisor, Qemu)
    return found.hypervisor


def no_warning(text: str) -> None:
    raise AssertionError(text)


def refusal(config: Config, name: str, value: str) -> str:
    with pytest.raises(KatapyError) as caught:
        annotated(config, {name: value}, no_warning)
    assert caught.value.code == status.INVALID_ARGUMENT
    assert name in str(caught.value)
    return str(caught.value)


def test_other_annotations_mean_nothing() -> None:
    config = Config()
    others = {"io.kubernetes.cri.sandbox-id": "x", "io.katacontainers.pkg.oci.bundle_path": "/"}
    assert annotated(config, others, no_warning) == config


@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_prefix(prefix: str) -> None:
    config = annotated(ALL, {f"{prefix}hypervisor.default_memory": "512"}, no_warning)
    assert config.hypervisor.default_memory == 512
    assert config.origins["hypervisor.qemu.default_memory"] == f"{prefix}hypervisor.default_memory"


def test_values_are_read_as_kata_reads_them() -> None:
    vm = with_(
        ALL,
        default_vcpus="0.5",
        default_max_vcpus="1",
        reclaim_guest_freed_memory="F",
        machine_type="microvm",
        kernel="/boot/vmlinux",
        kernel_params="c d=e",
        virtio_fs_extra_args='["-d", "-o", "x"]',
    )
    assert (vm.default_vcpus, vm.default_maxvcpus) == (0.5, 1)
    assert not vm.reclaim_guest_freed_memory
    assert (vm.machine_type, vm.kernel) == ("microvm", Path("/boot/vmlinux"))
    assert vm.kernel_params == "a=b c d=e"
    assert vm.virtio_fs_extra_args == ("-d", "-o", "x")


def test_the_runtime_and_the_agent_need_no_leave() -> None:
    config = annotated(
        Config(hypervisor=Qemu(enable_annotations=())),
        {
            "io.katacontainers.config.runtime.create_container_timeout": "7",
            "io.katacontainers.config.runtime.disable_guest_seccomp": "true",
            "io.katacontainers.config.agent.kernel_modules": "e1000 a=b; i915",
            "io.katacontainers.config.agent.container_pipe_size": "65536",
        },
        no_warning,
    )
    assert config.runtime.create_container_timeout == 7
    assert config.runtime.disable_guest_seccomp
    assert config.agent.kernel_modules == ("e1000 a=b", "i915")
    assert config.agent.container_pipe_size == 65536


def test_an_annotation_that_is_not_enabled() -> None:
    said = refusal(Config(), HYPERVISOR + "machine_type", "microvm")
    assert "is not enabled" in said
    assert "kernel_params, default_vcpus, default_memory" in said


def test_a_pattern_matches_the_whole_name() -> None:
    config = Config(hypervisor=Qemu(enable_annotations=("kernel",)))
    assert with_(config, kernel="/k").kernel == Path("/k")
    assert "is not enabled" in refusal(config, HYPERVISOR + "kernel_params", "x")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("hypervisor.default_memory", "lots", "a whole number of MiB"),
        ("hypervisor.default_memory", "1", "from 128"),
        ("hypervisor.default_vcpus", "100000", "accepted"),
        ("hypervisor.default_vcpus", str((os.cpu_count() or 1) + 1), "this host has"),
        ("hypervisor.enable_virtio_mem", "yes", "true or false"),
        ("hypervisor.kernel", "vmlinux", "an absolute path"),
        ("hypervisor.virtio_fs_extra_args", "-d", "a list of texts"),
        ("hypervisor.kernel_params", "a\nb", "one line of text"),
        ("hypervisor.kernel_hash", "00", "is not known"),
        ("hypervisor.enable_annotations", '["path"]', "is not known"),
        ("hypervisor.valid_hypervisor_paths", '["/bin/*"]', "is not known"),
        ("hypervisor.valid_virtio_fs_daemon_paths", '["/bin/*"]', "is not known"),
        ("hypervisor.seccompsandbox", "", "is not known"),
        ("hypervisor.seccomp_sandbox", "", "is not known"),
        ("runtime.enable_debug", "true", "is not known"),
        ("runtime.hypervisor_name", "clh", "is not known"),
        ("agent.policy", "cGFja2FnZQ==", "is not known"),
        ("katapy.channel", "vsock", "is not known"),
        ("hypervisor.path", "/bin/sh", "valid_hypervisor_paths does not allow it"),
        ("hypervisor.virtio_fs_daemon", "/bin/sh", "valid_virtio_fs_daemon_paths"),
    ],
)
def test_what_is_refused(name: str, value: str, said: str) -> None:
    assert said in refusal(ALL, f"io.katacontainers.config.{name}", value)


def test_programs_must_be_among_the_allowed_files(tmp_path: Path) -> None:
    program, other = tmp_path / "qemu-1", tmp_path / "other"
    program.touch()
    other.touch()
    vm = replace(ALL.hypervisor, valid_hypervisor_paths=(f"{tmp_path}/qemu-*",))
    config = Config(hypervisor=vm)
    assert with_(config, path=str(program)).path == program
    for wrong in (other, tmp_path / "qemu-2", f"{tmp_path}/qemu-1/../other"):
        refusal(config, HYPERVISOR + "path", str(wrong))


def test_one_that_has_no_effect_gives_a_warning() -> None:
    said: list[str] = []
    name = HYPERVISOR + "enable_template"
    assert annotated(ALL, {name: "true"}, said.append) == ALL
    assert said == [f"annotation {name} has no effect"]


def test_values_that_contradict_the_configuration() -> None:
    vm = replace(ALL.hypervisor, default_maxmemory=1024)
    config = Config(hypervisor=vm, origins={"hypervisor.qemu.default_maxmemory": "/etc/x.toml"})
    with pytest.raises(KatapyError, match=r"default_memory, which is 2049 MiB"):
        with_(config, default_memory="2049")


def test_keys_of_another_hypervisor() -> None:
    config = Config(hypervisor=Firecracker(enable_annotations=(".*",)))
    said: list[str] = []
    annotated(config, {HYPERVISOR + "machine_type": "q35"}, said.append)
    assert len(said) == 1


@given(
    name=st.sampled_from(sorted({*Qemu.__dataclass_fields__, "x", ""})),
    value=st.text(max_size=20) | st.integers().map(str) | st.sampled_from(["[]", "1e9", "nan"]),
)
def test_any_value_is_kept_or_refused_by_name(name: str, value: str) -> None:
    try:
        annotated(ALL, {HYPERVISOR + name: value}, lambda text: None)
    except KatapyError as error:
        assert error.code == status.INVALID_ARGUMENT  # noqa: PT017 - either outcome is right


SHARED_MOUNTS = "io.katacontainers.config.runtime.shared_mounts"
SHARED = {"name": "m", "src_ctr": "a", "src_path": "/x", "dst_ctr": "b", "dst_path": "/y/z-1."}


def test_shared_mounts_are_read() -> None:
    config = annotated(Config(), {SHARED_MOUNTS: json.dumps([SHARED])}, no_warning)
    assert config.runtime.shared_mounts == (SharedMount(**SHARED),)


@pytest.mark.parametrize(
    "value",
    [
        "{}",
        "[1]",
        "[",
        json.dumps([{**SHARED, "name": ""}]),
        json.dumps([{**SHARED, "src_path": "relative"}]),
        json.dumps([{**SHARED, "src_path": "/a/../b"}]),
        json.dumps([{**SHARED, "dst_path": "/a b"}]),
        json.dumps([{**SHARED, "dst_ctr": 1}]),
        json.dumps([{**SHARED, "more": "x"}]),
        json.dumps([{"name": "m"}]),
    ],
)
def test_wrong_shared_mounts_are_refused(value: str) -> None:
    assert "each with name, src_ctr" in refusal(Config(), SHARED_MOUNTS, value)


def test_directories_that_get_sockets_later() -> None:
    name = "io.katapy.config.katapy.socket_directories"
    config = annotated(Config(), {name: '["/run/spire"]'}, no_warning)
    assert config.katapy.socket_directories == ("/run/spire",)
    assert "is not known" in refusal(Config(), "io.katapy.config.katapy.cache_dir", "/x")
