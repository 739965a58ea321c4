"""cpio archives: read back by cpio itself, byte layout, same input → same bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.image.cpio import CpioWriter


def archive() -> bytes:
    writer = CpioWriter()
    writer.directory("bin")
    writer.file("bin/tool", b"\x00\x01tool", 0o755)
    writer.file("empty", b"")
    writer.symlink("sh", "/bin/tool")
    writer.node("console", 5, 1)
    return writer.finish()


def test_cpio_lists_what_was_added() -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio isn't installed")
    listing = subprocess.run(
        ["cpio", "-itvn", "--quiet"], input=archive(), capture_output=True, check=True
    ).stdout.decode()
    lines = [line.split() for line in listing.splitlines()]
    assert [line[0] for line in lines] == [
        "drwxr-xr-x",
        "-rwxr-xr-x",
        "-rw-r--r--",
        "lrwxrwxrwx",
        "crw-------",
    ]
    assert {(line[2], line[3]) for line in lines} == {("0", "0")}
    assert "sh -> /bin/tool" in listing


def test_cpio_unpacks_the_contents(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio isn't installed")
    writer = CpioWriter()
    writer.directory("bin")
    writer.file("bin/tool", bytes(range(256)) * 3 + b"!", 0o750)
    subprocess.run(["cpio", "-idm", "--quiet"], input=writer.finish(), cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == bytes(range(256)) * 3 + b"!"


def test_first_header_is_the_documented_one() -> None:
    writer = CpioWriter()
    writer.file("a", b"xyz", 0o644)
    assert (
        writer.finish()[:120]
        == (
            b"070701"
            b"00000001"
            b"000081a4"
            b"00000000"
            b"00000000"
            b"00000001"
            b"00000000"
            b"00000003"
            b"00000000"
            b"00000000"
            b"00000000"
            b"00000000"
            b"00000002"
            b"00000000"
            b"a\0"
            b"xyz\0"
            b"0707"
        )[:120]
    )


def test_same_files_give_the_same_bytes() -> None:
    assert archive() == archive()
