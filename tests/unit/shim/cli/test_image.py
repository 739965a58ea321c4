from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim.cli.main import main
from tests.unit.shim.cli.test_vm import build
from vmm.arch import host_architecture


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'[katapy]\ncache_dir = "{tmp_path}/cache"\n')
    return path


def test_list(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = build(tmp_path / "cache", "tuned", "ab" * 32)
    assert main(["image", "list", "--config", str(file)]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["KIND", "ARCH", "KEY", "KERNEL", "SIZE", "BUILT", "DIRECTORY"]
    assert line.split()[:4] == ["tuned", host_architecture(), "ab" * 6, "6.1.0"]
    assert line.endswith(f"1970-01-01T00:00:02Z  {image.rootfs.parent}")
    assert main(["image", "list", "--json", "--config", str(file)]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["kernel"] == str(image.kernel)
    assert said["initrd"] == ""
    assert said["versions"] == {"crun": "1.8"}


def test_list_of_none(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "list", "--config", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["image", "list", "--json", "--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_build_fails_with_one_line_when_the_cache_can_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[katapy]\ncache_dir = "/dev/null/cache"\n')
    assert main(["image", "build", "--quiet", "--config", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("katapy image: ")
    assert "/dev/null/cache" in captured.err
