from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from shim.cli.main import main
from shim.config.load import load_config
from shim.config.model import Config
from shim.version import VERSION

CONFIG = """
[hypervisor.qemu]
default_vcpus = 1.5
kernel = "/boot/vmlinux é"
virtio_fs_extra_args = ["--announce-submounts", "-d"]
[[runtime.shared_mounts]]
name = "m"
src_ctr = "a"
src_path = "/x"
dst_ctr = "b"
dst_path = "/y"
"""


def test_json_has_every_key_with_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    assert main(["env", "--json", "--config", str(file)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["katapy"] == VERSION
    assert said["packages"]["trio"]
    assert said["host"]["cpus"] >= 1
    assert said["config_sources"] == [str(file)]
    sections = Config().sections()
    assert said["config"].keys() == sections.keys()
    for section, values in sections.items():
        assert said["config"][section].keys() == {f.name for f in fields(values)}
    vm = said["config"]["hypervisor.qemu"]
    assert vm["default_vcpus"] == {"value": 1.5, "origin": str(file)}
    assert vm["path"] == {"value": "", "origin": ""}


def test_the_text_is_a_configuration_file_that_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    assert main(["env", "--config", str(file)]) == 0
    again = tmp_path / "again.toml"
    again.write_text(capsys.readouterr().out)
    assert load_config(search=(again,), environ={}) == load_config(search=(file,), environ={})
    assert load_config(search=(again,), environ={}).hypervisor.default_vcpus == 1.5
