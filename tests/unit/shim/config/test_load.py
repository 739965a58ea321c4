from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.containerd import runc_options_pb2, runtime_options_pb2
from shim.config.hypervisors import CloudHypervisor, Firecracker, Qemu
from shim.config.load import FILE_VARIABLE, OPTION_SOURCE, load_config
from shim.config.model import Config
from shim.errors import ConfigError
from shim.ttrpc import status


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(*search: Path) -> Config:
    return load_config(search=search, environ={})


def qemu(config: Config) -> Qemu:
    assert isinstance(config.hypervisor, Qemu)
    return config.hypervisor


def test_no_file_at_all_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "config.toml") == Config()
    assert load_config(search=(), environ={}).sources == ()


def test_values_and_where_they_came_from(tmp_path: Path) -> None:
    file = write(
        tmp_path / "config.toml",
        """
        [hypervisor.qemu]
        default_memory = 512
        kernel = "/boot/vmlinux"
        virtio_fs_extra_args = ["--announce-submounts"]
        [agent.kata]
        dial_timeout = 3
        [runtime]
        disable_guest_seccomp = true
        [katapy]
        channel = "vsock"
        """,
    )
    config = load(file)
    assert config.hypervisor.default_memory == 512
    assert config.hypervisor.kernel == Path("/boot/vmlinux")
    assert qemu(config).virtio_fs_extra_args == ("--announce-submounts",)
    assert config.agent.dial_timeout == 3
    assert config.runtime.disable_guest_seccomp
    assert config.katapy.channel == "vsock"
    assert config.sources == (str(file),)
    assert config.origins["hypervisor.qemu.kernel"] == str(file)
    assert "hypervisor.qemu.image" not in config.origins


def test_drop_ins_are_merged_in_the_order_of_their_names(tmp_path: Path) -> None:
    main = write(
        tmp_path / "config.toml", "[hypervisor.qemu]\ndefault_memory=300\npcie_root_port=3"
    )
    write(tmp_path / "config.d/20-b.toml", "[hypervisor.qemu]\ndefault_memory = 500")
    first = write(tmp_path / "config.d/10-a.toml", "[hypervisor.qemu]\ndefault_memory = 400")
    write(tmp_path / "config.d/30.toml~", "not TOML")
    write(tmp_path / "config.d/.hidden.toml", "not TOML")
    config = load(main)
    assert (config.hypervisor.default_memory, qemu(config).pcie_root_port) == (500, 3)
    assert config.sources == (str(main), str(first), str(tmp_path / "config.d/20-b.toml"))


def test_drop_ins_work_without_a_main_file(tmp_path: Path) -> None:
    write(tmp_path / "config.d/a.toml", '[katapy]\nchannel = "vsock"')
    assert load(tmp_path / "config.toml").katapy.channel == "vsock"


def test_the_first_place_that_has_something_counts(tmp_path: Path) -> None:
    second = write(tmp_path / "b/config.toml", "[hypervisor.qemu]\ndefault_memory = 200")
    third = write(tmp_path / "c/config.toml", "[hypervisor.qemu]\ndefault_memory = 300")
    assert load(tmp_path / "a/config.toml", second, third).sources == (str(second),)


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    named = write(tmp_path / "named.toml", "[hypervisor.qemu]\ndefault_memory = 200")
    other = write(tmp_path / "b/config.toml", "[hypervisor.qemu]\ndefault_memory = 300")
    config = load_config(search=(other,), environ={FILE_VARIABLE: str(named)})
    assert config.sources == (str(named),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[hypervisor.qemu]\ndefault_memory = "lots"',
            ["[hypervisor.qemu] default_memory = 'lots'", "a whole number of MiB from 128"],
        ),
        (
            '[katapy]\nchannel = "tcp"',
            ["[katapy] channel = 'tcp'", 'one of "auto", "serial", "vsock"'],
        ),
        ("[hypervisor.qemu]\ndefault_memroy = 1", ["default_memroy", 'mean "default_memory"']),
        ("[hypervisor.qmeu]\npath = ''", ["hypervisor.qmeu", 'mean "hypervisor.qemu"']),
        ("[runtime.x]\ny = 1", ["[runtime] x is not a key"]),
        ("runtime = 3", ["runtime = 3", "a table, [runtime]"]),
        ("hypervisor = 3", ["hypervisor is not a section"]),
        ("debug = true", ["debug is not a section"]),
        ("[katapy", ["not TOML: Expected"]),
        ("a = " + "[" * 5000, ["nested too deeply"]),
        ("[katapy]\ncache_dir = 'run'", ["cache_dir = 'run'", "an absolute path"]),
        (
            "[hypervisor.qemu]\ndefault_memory = 1024\ndefault_maxmemory = 512",
            ["default_maxmemory = 512", "at least default_memory, which is 1024 MiB"],
        ),
        (
            "[hypervisor.qemu]\ndefault_vcpus = 2.5\ndefault_maxvcpus = 2",
            ["default_maxvcpus = 2", "at least default_vcpus, which is 2.5 vCPUs"],
        ),
    ],
)
def test_a_wrong_file_names_itself_the_key_and_what_is_accepted(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    file = write(tmp_path / "config.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    for part in [str(file), *said]:
        assert part in str(caught.value)
    assert caught.value.code == status.INVALID_ARGUMENT


def test_a_contradiction_names_the_file_that_made_it(tmp_path: Path) -> None:
    main = write(tmp_path / "config.toml", "[hypervisor.qemu]\ndefault_memory = 1024")
    over = write(tmp_path / "config.d/a.toml", "[hypervisor.qemu]\ndefault_maxmemory = 512")
    with pytest.raises(ConfigError, match=str(over)):
        load(main)


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", f'[katapy]\nchannel = "{"x" * 9999}"')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert len(str(caught.value)) < 400


def test_a_fifo_in_the_place_of_the_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load(tmp_path / "config.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path / "config.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "binary.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load(tmp_path / "large.toml")


def test_kata_keys_without_effect_give_a_warning_unless_they_ask_for_nothing(
    tmp_path: Path,
) -> None:
    file = write(
        tmp_path / "config.toml",
        """
        [hypervisor.qemu]
        enable_template = true
        enable_hugepages = false
        valid_hypervisor_paths = ["/usr/bin/qemu-system-x86_64"]
        [runtime]
        keep_abnormal = true
        [hypervisor.dragonball]
        path = "/usr/bin/dragonball"
        """,
    )
    warnings = load(file).warnings
    assert [w.removeprefix(f"{file}: ") for w in warnings] == [
        "[hypervisor.qemu] enable_template has no effect",
        "[hypervisor.dragonball] has no effect",
        "[runtime] keep_abnormal has no effect",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[runtime]", Qemu()),
        ("[hypervisor.firecracker]\ndefault_memory = 200", Firecracker(default_memory=200)),
        ("[hypervisor.clh]\ndisable_seccomp = true", CloudHypervisor(disable_seccomp=True)),
        ("[hypervisor.cloud-hypervisor]", CloudHypervisor()),
        ("[runtime]\nhypervisor_name = 'cloud-hypervisor'", CloudHypervisor()),
        ("[runtime]\nhypervisor_name = 'firecracker'\n[hypervisor.qemu]", Firecracker()),
        (
            "[hypervisor.qemu]\n[hypervisor.clh]\ndefault_memory = 300\n"
            "[runtime]\nhypervisor_name = 'clh'",
            CloudHypervisor(default_memory=300),
        ),
    ],
)
def test_which_hypervisor(tmp_path: Path, text: str, expected: object) -> None:
    config = load(write(tmp_path / "config.toml", text))
    assert config.hypervisor == expected
    others = text.count("[hypervisor.") - text.count(f"[{config.hypervisor.section}]")
    assert len(config.warnings) == others * ("hypervisor_name" in text)


def test_two_hypervisors_and_no_word_which(tmp_path: Path) -> None:
    write(tmp_path / "config.toml", "[hypervisor.qemu]\n")
    over = write(tmp_path / "config.d/a.toml", "[hypervisor.firecracker]\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.toml")
    for part in (str(over), "[hypervisor.firecracker], [hypervisor.qemu]", "hypervisor_name"):
        assert part in str(caught.value)


def test_linux_aio_wants_direct_disks(tmp_path: Path) -> None:
    text = '[hypervisor.qemu]\nblock_device_aio = "native"\n'
    with pytest.raises(ConfigError, match="together with block_device_cache_direct = true"):
        load(write(tmp_path / "config.toml", text))
    load(write(tmp_path / "config.toml", f"{text}block_device_cache_direct = true"))


@pytest.mark.parametrize("size", ["513", "true", "65536"])
def test_a_sector_size_is_a_power_of_two(tmp_path: Path, size: str) -> None:
    text = f"[hypervisor.qemu]\nblock_device_logical_sector_size = {size}"
    with pytest.raises(ConfigError, match="power of two"):
        load(write(tmp_path / "config.toml", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("block_device_cache_direct = true", "always uses the host's page cache"),
        ("shared_fs = 'virtio-fs'", 'one of "auto", "none"'),
        ("default_vcpus = 33", "from -1 to 32"),
    ],
)
def test_what_firecracker_can_not(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "config.toml", f"[hypervisor.firecracker]\n{text}")
    with pytest.raises(ConfigError, match=said):
        load(file)


def test_the_other_kata_runtime_s_name_of_a_key(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", '[hypervisor.qemu]\nseccomp_sandbox = ""')
    assert qemu(load(file)).seccompsandbox == ""


def option(path: str = "", body: str = "", name: str = "runtimeoptions.v1.Options") -> Any:
    message = runtime_options_pb2.Options(config_path=path, config_body=body.encode())
    return name, message.SerializeToString()


def test_runtime_option_with_a_path(tmp_path: Path) -> None:
    named = write(tmp_path / "a/named.toml", "[hypervisor.qemu]\ndefault_memory = 200")
    over = write(tmp_path / "a/config.d/x.toml", "[hypervisor.qemu]\npcie_root_port = 2")
    other = write(tmp_path / "b/config.toml", "[hypervisor.qemu]\ndefault_memory = 300")
    environ = {FILE_VARIABLE: str(other)}
    for name in (
        "runtimeoptions.v1.Options",
        "cri.runtimeoptions.v1.Options",
        "type.googleapis.com/runtimeoptions.v1.Options",
    ):
        config = load_config(option(str(named), name=name), search=(other,), environ=environ)
        assert config.sources == (str(named), str(over))
        assert not config.warnings


def test_runtime_option_with_a_body_goes_over_the_file(tmp_path: Path) -> None:
    # What containerd's CRI plugin makes of an options table without ConfigPath.
    body = """
    TypeUrl = "runtimeoptions.v1.Options"
    [hypervisor.qemu]
    default_memory = 256
    """
    file = write(
        tmp_path / "config.toml", "[hypervisor.qemu]\ndefault_memory=300\npcie_root_port=3"
    )
    config = load_config(option(body=body), search=(file,), environ={})
    assert (config.hypervisor.default_memory, qemu(config).pcie_root_port) == (256, 3)
    assert config.sources == (str(file), OPTION_SOURCE)
    with pytest.raises(ConfigError, match=f"{OPTION_SOURCE}: nonsense is not a section"):
        load_config(option(body="nonsense = 1"), search=(), environ={})


@pytest.mark.parametrize("path", ["/does/not/exist.toml", "relative.toml"])
def test_runtime_option_with_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        load_config(option(path), search=(), environ={})


def test_runtime_options_that_say_nothing() -> None:
    runc = runc_options_pb2.Options(binary_name="crun").SerializeToString()
    old = ("containerd.linux.runc.CreateOptions", b"")
    for options in (None, ("", b""), option(), ("containerd.runc.v1.Options", runc), old):
        config = load_config(options, search=(), environ={})
        assert config == Config()
        assert config.warnings == ()


def test_runtime_option_of_an_unknown_type_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(("type.googleapis.com/example.v1.Options", b"\xff"), search=(), environ={})
    assert caught.value.code == status.INVALID_ARGUMENT
    assert "'type.googleapis.com/example.v1.Options'" in str(caught.value)
    assert "runtimeoptions.v1.Options" in str(caught.value)


def test_runtime_option_that_is_no_message() -> None:
    with pytest.raises(ConfigError, match=r"not a runtimeoptions\.v1\.Options message"):
        load_config(("runtimeoptions.v1.Options", b"\xff\xff"), search=(), environ={})


@given(st.binary(max_size=60))
def test_any_runtime_option_loads_or_is_a_config_error(value: bytes) -> None:
    with suppress(ConfigError):
        load_config(("runtimeoptions.v1.Options", value), search=(), environ={})


@pytest.mark.parametrize(
    ("vcpus", "limit", "boot", "most"),
    [(1.0, 0, 1, 8), (0.0, 0, 1, 8), (-1.0, 0, 8, 8), (1.5, 3, 2, 3), (12.0, 0, 12, 12)],
)
def test_vcpus(vcpus: float, limit: int, boot: int, most: int) -> None:
    qemu = Qemu(default_vcpus=vcpus, default_maxvcpus=limit)
    assert (qemu.boot_vcpus(8), qemu.max_vcpus(8)) == (boot, most)


def test_max_memory() -> None:
    assert Qemu(default_memory=512).max_memory(4096) == 4096
    assert Qemu(default_memory=512, default_maxmemory=1024).max_memory(4096) == 1024
    assert Qemu(default_memory=512).max_memory(256) == 512


@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_a_config_error(data: bytes) -> None:
    from shim.config.load import _Merged, _parse

    merged = _Merged()
    try:
        merged.add("file", _parse("file", data))
        merged.config()
    except ConfigError:
        pass


TOML_VALUE = st.one_of(
    st.booleans().map(lambda b: str(b).lower()),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text("abc/ =,", max_size=12).map(lambda t: f'"{t}"'),
    st.lists(st.sampled_from(['"a"', "1", "[]"])).map(lambda v: f"[{', '.join(v)}]"),
    st.sampled_from(["nan", "inf", "1979-05-27", "{ a = 1 }"]),
)


@given(
    key=st.sampled_from(sorted(Qemu.__dataclass_fields__)),
    value=TOML_VALUE,
)
def test_any_value_of_a_key_is_kept_or_refused_by_name(key: str, value: str) -> None:
    from shim.config.load import _Merged, _parse

    merged = _Merged()
    try:
        merged.add("file", _parse("file", f"[hypervisor.qemu]\n{key} = {value}\n".encode()))
        merged.config()
    except ConfigError as error:
        assert key in str(error)  # noqa: PT017 - either outcome is right


def test_loading_needs_no_third_party_module(tmp_path: Path) -> None:
    write(tmp_path / "config.toml", "[hypervisor.qemu]\ndefault_memory = 512")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from shim.config.load import load_config\n"
        "config = load_config(search=(Path(sys.argv[1]),), environ={})\n"
        "assert config.hypervisor.default_memory == 512\n"
        "foreign = {m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(foreign - {'shim', 'protos', 'vmm', '__main__'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(tmp_path / "config.toml")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
