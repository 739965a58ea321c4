"""Containers of other architectures than the host's, in emulated VMs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.lib.busybox import write_image
from deploy.lib.runtime import Runtime
from deploy.lib.tools import FOREIGN_QEMU, fetch_foreign_qemu, fetch_squashfs_tools
from tests.support import versions
from tests.support.ctr import Ctr
from tests.support.pod_netns import Netns, join_by_veth, new_netns
from tests.support.terminal import open_terminal
from tests.support.waiting import eventually
from vmm import arch as arches
from vmm.arch import Architecture
from vmm.image.apt import open_deb
from vmm.image.build import archive as package_archive
from vmm.image.build import build_image

pytestmark = [pytest.mark.vm, pytest.mark.root]

ARCHITECTURES = [
    pytest.param(name, marks=() if name in ("x86_64", "aarch64") else pytest.mark.foreign)
    for name in arches.ARCHITECTURES
    if name != arches.host_architecture()
]
# Where the host's own release is too old to have the architecture.
RELEASES = {"riscv64": "sid"}
RUN_TIMEOUT = 180.0
SEEN = 30.0


@dataclass(frozen=True)
class Foreign:
    """A configuration for guests of an architecture, and a container image of it."""

    arch: Architecture
    config: Path
    image: Path
    name: str

    @property
    def platform(self) -> tuple[str, str]:
        """How ctr is told which of an image's variants to take."""
        return "--platform", f"linux/{self.arch.oci}"

    def run(self, ctr: Ctr, *options: str) -> str:
        """Start a container that does nothing and return its id."""
        name = ctr.new_id()
        runtime = ("--runtime", ctr.runtime, "--runtime-config-path", self.config)
        image = (*self.platform, *options, "--detach", self.name, name)
        started = ctr("run", *runtime, *image, "sleep", "1000", timeout=RUN_TIMEOUT)
        assert started.code == 0, started.error
        return name


def debian_busybox(cache: Path, arch: Architecture) -> bytes:
    """The static busybox that is in the guest image too, so that it is there already."""
    apt = package_archive(cache, arch, RELEASES.get(arch.name, ""))
    package, _ = apt.candidate("busybox-static")
    (deb,) = apt.fetch([package])
    with open_deb(deb) as archive:
        for member in archive:
            if member.name.endswith("bin/busybox"):
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise AssertionError(f"no busybox in {deb}")


def qemu_setting(arch: Architecture) -> str:
    """The configuration of a QEMU that the host lacks, which is then fetched."""
    if shutil.which(f"qemu-system-{arch.name}") or arch.name not in FOREIGN_QEMU:
        return ""
    release, _, program = FOREIGN_QEMU[arch.name]
    what = f"QEMU for {arch.name}"
    packages = versions.obtain(what, release, lambda: fetch_foreign_qemu(arch.name))
    return f'[hypervisor.qemu]\npath = "{packages.program(f"/usr/bin/{program}")}"\n'


@pytest.fixture(scope="module")
def packers() -> Iterator[None]:
    """The programs that images are packed with, fetched where the host lacks them."""
    with pytest.MonkeyPatch.context() as patch:
        if shutil.which("mksquashfs") is None:
            packages = versions.obtain("squashfs-tools", "bookworm", fetch_squashfs_tools)
            folder = packages.program("/usr/bin")
            patch.setenv("PATH", f"{os.environ['PATH']}:{folder}")
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def foreign(
    request: pytest.FixtureRequest, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Foreign:
    """An architecture, its guest image built."""
    assert runtime.config is not None
    arch = arches.architecture(request.param)
    if arch.rootfs == "squashfs":
        request.getfixturevalue("packers")
    folder = tmp_path_factory.mktemp(arch.name)
    config = folder / "katapy.toml"
    cache = Path(runtime.config.read_text().split('"')[1])
    build_image("debian", cache, architecture=arch.name, release=RELEASES.get(arch.name, ""))
    own = f'guest_arch = "{arch.name}"\n{qemu_setting(arch)}'
    config.write_text(runtime.config.read_text() + own)
    image, name = folder / "busybox.tar", f"localhost/katapy/busybox:{arch.oci}"
    write_image(image, name, architecture=arch.oci, busybox=debian_busybox(cache, arch))
    return Foreign(arch, config, image, name)


def test_foreign_container(ctr: Ctr, foreign: Foreign) -> None:
    ctr.ok("images", "import", *foreign.platform, foreign.image)
    name = foreign.run(ctr)
    output = ctr.exec(name, "uname", "-m", timeout=60)
    assert (output.code, output.text) == (0, foreign.arch.name), output.error
    script = "head -c 1048576 /dev/urandom >/big; md5sum </big; cat /big | md5sum; exit 7"
    output = ctr.exec(name, "sh", "-c", script, timeout=60)
    first, second = output.text.splitlines()
    assert (output.code, first) == (7, second), output.error
    # The size goes into the kernel by an ioctl whose number and layout are the architecture's;
    # ctr sends it once the process runs.
    script = "until stty size 2>&1 | grep '31 97'; do sleep 0.1; done"
    argv = ctr.command("tasks", "exec", "--exec-id", "tty", "--tty", name, "sh", "-c", script)
    with open_terminal(argv, columns=97, rows=31) as terminal:
        terminal.read_until(b"31 97", timeout=60)
        assert terminal.wait(timeout=30) == 0


@pytest.mark.foreign
def test_what_comes_to_a_running_foreign_vm(
    ctr: Ctr, foreign: Foreign, series: str, token: str
) -> None:
    """A disk that is hot-plugged as the root file system, and a network card."""
    if series == "1.6":
        pytest.skip("containerd 1.6 has no blockfile snapshotter")
    local = ["--local"] if series.startswith("2.") else []
    on_disk = ("--snapshotter", "blockfile")
    ctr.ok("images", "import", *local, *foreign.platform, *on_disk, foreign.image)
    with new_netns(f"{token}-pod") as pod, new_netns(f"{token}-world") as world:
        _meet_the_world(ctr, foreign, on_disk, pod, world)
        ctr.remove_all()


def _meet_the_world(
    ctr: Ctr, foreign: Foreign, on_disk: tuple[str, str], pod: Netns, world: Netns
) -> None:
    # On these a card must be there at boot.
    late = foreign.arch.name not in ("ppc64le", "riscv64")
    if not late:
        join_by_veth(pod, world)
    name = foreign.run(ctr, *on_disk, "--with-ns", f"network:{pod.path}")
    (root,) = (
        line.split()
        for line in ctr.exec(name, "cat", "/proc/mounts").text.splitlines()
        if line.split()[1] == "/"
    )
    assert (root[0].startswith("/dev/"), root[2]) == (True, "ext4"), root
    assert ctr.exec(name, "sh", "-c", "echo kept >/kept; sync; cat /kept").text == "kept"
    if late:
        join_by_veth(pod, world)
    shows = ("192.0.2.2/24", "2001:db8::2/64")
    eventually(
        lambda: all(text in ctr.exec(name, "ip", "addr").text for text in shows), "it", timeout=SEEN
    )
    assert ctr.exec(name, "ping", "-c", "2", "-W", "5", "192.0.2.1").code == 0
