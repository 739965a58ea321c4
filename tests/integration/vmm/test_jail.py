"""The jail: what is brought in shows in a jailer's mount namespace, and all of it goes again."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm import mounts
from vmm.errors import InvalidConfig
from vmm.firecracker.jail import Jail, Jailer, own_uid

pytestmark = pytest.mark.root

# As the jailer does: a mount namespace of its own whose mounts follow ours, and a root in it.
ENTER = """
mount --make-rslave /
mount --rbind "$1" "$1"
cd "$1"
mkdir old_root
pivot_root . old_root
echo ready
read -r line
read -r line2
"""


@pytest.fixture
def jailer(tmp_path: Path) -> Jailer:
    return Jailer(base_dir=tmp_path / "jails")


@pytest.fixture
def records() -> list[tuple[str, str | int]]:
    return []


@pytest.fixture
def jail(jailer: Jailer, tmp_path: Path, records: list[tuple[str, str | int]]) -> Iterator[Jail]:
    def record(kind: str, value: str | int) -> None:
        records.append((kind, value))

    (tmp_path / "vm").mkdir()
    made = Jail(jailer, Path("/bin/true"), "vm-1", tmp_path / "vm", record)
    made.make()
    yield made
    made.remove()
    assert list(jailer.base_dir.iterdir()) == []
    assert mounts.mounted_below(tmp_path) == []


def inside(jail: Jail, path: Path) -> Path:
    return jail.root / jail.map_path(path).lstrip("/")


def test_files_are_brought_in_and_taken_out(jail: Jail, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("content")
    file.chmod(0o600)
    os.chown(file, 7, 8)
    jail.bring_in(file, read_only=False)
    jail.bring_in(file, read_only=False)
    assert inside(jail, file).read_text() == "content"
    assert (file.stat().st_uid, file.stat().st_gid) == jail.owner
    jail.take_out(file)
    place = inside(jail, file)
    assert place.read_text() == "content"
    jail.take_out(file)
    assert not place.exists()
    assert (file.stat().st_uid, file.stat().st_gid) == (7, 8)
    with pytest.raises(InvalidConfig, match="not in the jail"):
        jail.map_path(file)


def test_a_readable_file_keeps_its_owner_and_is_read_only(jail: Jail, tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_text("kernel")
    file.chmod(0o644)
    jail.bring_in(file, read_only=True)
    assert file.stat().st_uid == 0
    with pytest.raises(OSError, match="Read-only"):
        inside(jail, file).write_text("changed")


def test_a_directory_is_brought_in_with_what_comes_into_it(jail: Jail, tmp_path: Path) -> None:
    directory = tmp_path / "snapshot"
    directory.mkdir()
    jail.bring_in(directory, read_only=False)
    (directory / "memory").write_text("later")
    name = jail.map_path(directory / "memory")
    assert (jail.root / name.lstrip("/")).read_text() == "later"


def test_what_is_brought_in_later_arrives_in_the_jailers_namespace(
    jail: Jail, tmp_path: Path
) -> None:
    command = ["unshare", "-m", "--propagation", "unchanged", "sh", "-ec", ENTER, "sh"]
    with subprocess.Popen(
        [*command, str(jail.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as jailed:
        assert jailed.stdout is not None
        assert jailed.stdin is not None
        assert jailed.stdout.readline() == "ready\n"
        file = tmp_path / "disk"
        file.write_text("hot")
        jail.bring_in(file, read_only=False)
        seen = Path(f"/proc/{jailed.pid}/root") / jail.map_path(file).lstrip("/")
        assert seen.read_text() == "hot"
        jail.take_out(file)
        assert not seen.exists()
        jailed.stdin.write("\n\n")
        jailed.stdin.flush()


def test_everything_is_recorded_before_it_is_made(
    jail: Jail, tmp_path: Path, records: list[tuple[str, str | int]]
) -> None:
    file = tmp_path / "f"
    file.touch()
    jail.bring_in(file, read_only=True)
    kinds = [kind for kind, _ in records]
    assert kinds == ["tree", "mount", "file", "mount"]
    assert stat.S_ISLNK(jail.link.lstat().st_mode)
    assert jail.link.resolve() == jail.root / str(tmp_path / "vm").lstrip("/")


def test_an_id_in_use_is_refused(jail: Jail, jailer: Jailer, tmp_path: Path) -> None:
    twin = Jail(jailer, Path("/bin/true"), "vm-1", tmp_path / "vm2", lambda kind, value: None)
    with pytest.raises(InvalidConfig, match="there is a jail"):
        twin.make()


def test_a_file_system_that_will_not_do(tmp_path: Path) -> None:
    options = ["-t", "tmpfs", "-o", "noexec,nodev,size=1M", "tmpfs", str(tmp_path)]
    subprocess.run(["mount", *options], check=True)
    try:
        jail = Jail(Jailer(base_dir=tmp_path), Path("/bin/true"), "x", tmp_path, print)
        with pytest.raises(InvalidConfig, match="noexec, nodev"):
            jail.make()
        assert list(tmp_path.iterdir()) == []
    finally:
        mounts.unmount(tmp_path)


def test_users_are_the_vms_own() -> None:
    uids = {own_uid(f"vm-{number}") for number in range(100)}
    assert len(uids) == 100
    assert all(0x78000000 <= uid < 0x79000000 for uid in uids)
