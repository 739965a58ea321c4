"""Images whose layers are disks: containerd's erofs snapshotter.

From 2.2 on containerd hands over each layer as an image and, if the snapshotter has a
``default_size``, another one for the container's changes; before, one overlay.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.lib.busybox import write_image
from deploy.lib.containerd import Daemon
from tests.support.containerds import number
from tests.support.cri_daemon import EROFS
from tests.support.ctr import Ctr, Output

pytestmark = [pytest.mark.root, pytest.mark.vm]

ABOVE = (
    {"one/lower": "1", "two/file": "2", "etc/hostname": "middle"},
    {"bin/.wh.ar": "", "one/.wh..wh..opq": "", "one/upper": "3", "etc/hostname": "top"},
)
"""Two layers: the upper one replaces a file, hides another, and empties a directory."""

SEEN = "cat /etc/hostname /two/file && echo && ls /one && ! test -e /bin/ar"
WRITTEN = "echo new > /etc/hostname && rm /two/file && cat /etc/hostname && ls /two"
MIB = 1 << 20

Run = Callable[..., Output]


def unpack(ctr: Ctr, image: Path) -> None:
    """Have the snapshotter make the layers of an image."""
    ctr.ok("images", "import", "--local", "--snapshotter", "erofs", image)


@pytest.fixture
def tidy(ctr: Ctr, series: str) -> Iterator[None]:
    """Takes away what 2.1 keeps mounted for good."""
    if not series.startswith("2."):
        pytest.skip(f"containerd {series} has no erofs snapshotter")
    yield
    if number(series) >= (2, 2):
        return  # layers are files, and nothing is mounted but for a container
    ctr.remove_all()
    snapshots = ("snapshots", "--snapshotter", "erofs")
    for line in reversed(ctr.ok(*snapshots, "list").text.splitlines()[1:]):
        ctr.ok(*snapshots, "rm", line.split()[0])
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if "io.containerd.snapshotter.v1.erofs" in line:
            subprocess.run(["umount", line.split()[4]], check=True)


@pytest.fixture
def layered(ctr: Ctr, series: str, tmp_path: Path, tidy: None) -> Run:
    """Runs a script in a container of an image of three layers."""
    if number(series) < (2, 2):
        pytest.skip(f"containerd {series} hands over one overlay, not its layers")
    return imported(ctr, tmp_path, ABOVE)


def imported(ctr: Ctr, folder: Path, above: tuple[dict[str, str], ...]) -> Run:
    """An image of busybox and the given layers; what runs a script in a container of it."""
    name = f"localhost/katapy/layers-{len(above)}:latest"
    write_image(folder / "layers.tar", name, above=above)
    unpack(ctr, folder / "layers.tar")

    def run(script: str, *options: str | Path) -> Output:
        words = ("run", "--rm", "--snapshotter", "erofs", "--runtime", ctr.runtime, *options)
        return ctr(*words, name, ctr.new_id(), "sh", "-ec", script, timeout=90)

    return run


@pytest.mark.core
def test_erofs_snapshotter(ctr: Ctr, image: Path, tidy: None) -> None:
    unpack(ctr, image)
    script = "echo new >/etc/hostname && cat /etc/hostname && rm /bin/ar && ls /bin/ar"
    output = ctr.run("sh", "-c", script, options=["--snapshotter", "erofs"])
    assert output.text == "new", output.error
    assert "/bin/ar: No such file" in output.error


@pytest.mark.core
def test_layers_are_disks(layered: Run) -> None:
    kept = "test $(df -k / | tail -1 | awk '{print $2}') -lt 65536"
    output = layered(f"grep ' / ' /proc/mounts; {SEEN}; {WRITTEN}; {kept}")
    assert output.code == 0, output.error
    mount, *text = output.text.splitlines()
    (lower,) = (word for word in mount.split()[3].split(",") if word.startswith("lowerdir="))
    assert mount.startswith("overlay / overlay rw")
    assert lower.count("/run/kata-containers/sandbox/storage/") == 3, "the guest has stacked them"
    assert text == ["top2", "upper", "new"], "what one container wrote is in its own disk"


def test_a_full_disk_is_the_containers_own_affair(layered: Run) -> None:
    output = layered("dd if=/dev/zero of=/big bs=1M count=80")
    assert output.code != 0
    assert "No space left" in output.error


def test_read_only(layered: Run) -> None:
    output = layered(f"{SEEN}; touch /new", "--read-only")
    assert output.text.splitlines() == ["top2", "upper"], output.error
    assert "Read-only" in output.error


def test_nothing_is_shared(layered: Run, configured: Callable[[str], tuple[str, str]]) -> None:
    output = layered(f"{SEEN}; {WRITTEN}", *configured('[hypervisor.qemu]\nshared_fs = "none"'))
    assert output.text.splitlines() == ["top2", "upper", "new"], output.error


def test_more_layers_than_disks(ctr: Ctr, layered: Run, tmp_path: Path) -> None:
    many = tuple({f"file-{index}": "", "etc/hostname": str(index)} for index in range(14))
    output = imported(ctr, tmp_path, many)("cat /etc/hostname; ls / | grep -c file-")
    assert output.text == "1314", output.error


@pytest.fixture
def no_disk_for_changes(daemon: Daemon, layered: Run) -> Iterator[None]:
    """The snapshotter as containerd configures it: changes go to a directory of the host."""
    config = daemon.folder / "config.toml"
    text = config.read_text()
    line = next(line for line in EROFS.splitlines() if "default_size" in line)
    assert line in text
    daemon.stop()
    config.write_text(text.replace(line, ""))
    daemon.start()
    yield
    daemon.stop()
    config.write_text(text)
    daemon.start()


@pytest.mark.core
def test_changes_are_a_directory_of_the_host(
    ctr: Ctr,
    daemon: Daemon,
    layered: Run,
    no_disk_for_changes: None,
    configured: Callable[[str], tuple[str, str]],
) -> None:
    name = ctr.new_id()
    options = ("--snapshotter", "erofs", "--detach", "--runtime", ctr.runtime)
    image = f"localhost/katapy/layers-{len(ABOVE)}:latest"
    ctr.ok("run", *options, image, name, "sleep", "1000", timeout=90)
    output = ctr.exec(name, "sh", "-ec", f"{SEEN}; echo new > /written")
    assert output.text.splitlines() == ["top2", "upper"], output.error
    snapshots = daemon.folder / "root/io.containerd.snapshotter.v1.erofs/snapshots"
    assert [path.read_text() for path in snapshots.glob("*/fs/written")] == ["new\n"]
    ctr.remove(name)

    output = layered(f"{SEEN}; {WRITTEN}", *configured('[hypervisor.qemu]\nshared_fs = "none"'))
    assert output.text.splitlines() == ["top2", "upper", "new"], output.error
