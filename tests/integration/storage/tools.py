"""What the mount cases look at the host with, and make their files with."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any


class Ledger:
    """Keeps the order in which things were noted and checks it against the mounts."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[str, dict[str, Any]]] = {}
        self._next = 0

    def add(self, kind: str, **fields: Any) -> int:
        path = fields.get("target") or fields["path"]
        if kind == "mount":
            assert not os.path.ismount(path) or path.endswith("share"), f"{path} is there already"
        self._next += 1
        self.entries[self._next] = (kind, fields)
        return self._next

    def remove(self, entry: int) -> None:
        del self.entries[entry]


def mounted_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(path))]


def options_of(path: Path) -> str:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line for line in reversed(lines) if line.split()[4] == str(path))


def directory(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def image(path: Path, *, fstype: str = "ext4") -> Path:
    source = directory(path.with_suffix(".d"), hello="from the image")
    if fstype == "ext4":
        path.touch()
        os.truncate(path, 8 << 20)
        command = ["mkfs.ext4", "-q", "-d", str(source), str(path)]
    else:
        command = ["mkfs.erofs", "--quiet", str(path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def loops_on(path: Path) -> list[str]:
    done = subprocess.run(["losetup", "-j", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def wait_until_free(file: Path) -> None:
    """The kernel frees an auto-clear device a moment after its last user."""
    deadline = time.monotonic() + 5
    while loops_on(file):
        assert time.monotonic() < deadline, "the loop device stays"
        time.sleep(0.01)


def is_read_only(device: str) -> bool:
    return Path(f"/sys/block/{device}/ro").read_text().strip() == "1"


def is_mount(path: Path) -> bool:
    return os.path.ismount(path)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def start_server() -> subprocess.Popen[bytes]:
    """What virtiofsd does first: a mount namespace of its own, below ours."""
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
