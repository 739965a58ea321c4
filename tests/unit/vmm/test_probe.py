from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.arch import architecture
from vmm.errors import InvalidConfig
from vmm.qemu.probe import find_binary, parse, probe

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize(
    (
        "version",
        "run_with_user",
        "migrate_file",
        "reconnect_ms",
        "mem_unplug_error",
        "monitor_object",
    ),
    [
        ("7.2", False, False, False, True, False),
        ("10.0", True, True, True, False, False),
        ("11.1", True, True, True, False, True),
    ],
)
def test_versions(
    version: str,
    run_with_user: bool,
    migrate_file: bool,
    reconnect_ms: bool,
    mem_unplug_error: bool,
    monitor_object: bool,
) -> None:
    features = parse((RECORDED / f"qemu-{version}.jsonl").read_bytes())
    assert features.version_text.startswith(version)
    assert features.machines == ("q35", "microvm")
    assert "virtio-mem-pci" in features.devices
    assert features.sandbox
    assert features.run_with_user is run_with_user
    assert features.migrate_file is migrate_file
    assert features.reconnect_ms is reconnect_ms
    assert features.mem_unplug_error is mem_unplug_error
    assert features.monitor_object is monitor_object


def test_too_old() -> None:
    output = (RECORDED / "qemu-7.2.jsonl").read_bytes()
    with pytest.raises(InvalidConfig, match=r"QEMU 7\.2 or later"):
        parse(output.replace(b'"minor": 2, "major": 7', b'"minor": 1, "major": 7'))


@pytest.mark.parametrize("output", [b"", b"usage: something\n", b'{"return": {}}\n'])
def test_not_qemu(output: bytes) -> None:
    with pytest.raises(InvalidConfig):
        parse(output)


def test_cache_is_keyed_by_the_program(tmp_path: Path) -> None:
    count = tmp_path / "count"
    program = tmp_path / "qemu"
    program.write_text(
        f"#!/bin/sh\ncat >/dev/null\necho >> {count}\ncat {RECORDED}/qemu-10.0.jsonl\n"
    )
    program.chmod(0o755)
    cache = tmp_path / "cache"
    first = probe(program, cache)
    assert probe(program, cache) == first
    assert count.read_text() == "\n"
    os.utime(program, ns=(1, 1))
    assert probe(program, cache) == first
    assert count.read_text() == "\n\n"
    for file in cache.iterdir():
        file.write_text("{ damaged")
    assert probe(program, cache) == first
    assert probe(program, None) == first


def test_programs_that_fail(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho broken library >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(InvalidConfig, match="exit code 3: broken library"):
        probe(program)
    with pytest.raises(InvalidConfig, match="no QEMU program nonesuch"):
        find_binary(architecture(), "nonesuch")
    program.write_text("no program")
    with pytest.raises(InvalidConfig, match="can't run"):
        probe(program)
