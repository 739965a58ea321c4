"""A container of another architecture than the host's, in an emulated VM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.lib.busybox import write_image
from deploy.lib.runtime import Runtime
from tests.support.ctr import Ctr
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


@dataclass(frozen=True)
class Foreign:
    """A configuration for guests of an architecture, and a container image of it."""

    arch: Architecture
    config: Path
    image: Path
    name: str


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


@pytest.fixture(scope="module", params=ARCHITECTURES)
def foreign(
    request: pytest.FixtureRequest, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Foreign:
    """An architecture, its guest image built."""
    assert runtime.config is not None
    arch = arches.architecture(request.param)
    folder = tmp_path_factory.mktemp(arch.name)
    config = folder / "katapy.toml"
    cache = Path(runtime.config.read_text().split('"')[1])
    build_image("debian", cache, architecture=arch.name, release=RELEASES.get(arch.name, ""))
    config.write_text(runtime.config.read_text() + f'guest_arch = "{arch.name}"\n')
    image, name = folder / "busybox.tar", f"localhost/katapy/busybox:{arch.oci}"
    write_image(image, name, architecture=arch.oci, busybox=debian_busybox(cache, arch))
    return Foreign(arch, config, image, name)


def test_foreign_container(ctr: Ctr, foreign: Foreign) -> None:
    platform = f"linux/{foreign.arch.oci}"
    ctr.ok("images", "import", "--platform", platform, foreign.image)
    name = ctr.new_id()
    runtime = ("--runtime", ctr.runtime, "--runtime-config-path", foreign.config)
    options = (*runtime, "--platform", platform, "--detach")
    started = ctr("run", *options, foreign.name, name, "sleep", "1000", timeout=RUN_TIMEOUT)
    assert started.code == 0, started.error
    output = ctr.exec(name, "uname", "-m", timeout=60)
    assert (output.code, output.text) == (0, foreign.arch.name), output.error
    script = "head -c 1048576 /dev/urandom >/big; md5sum </big; cat /big | md5sum; exit 7"
    output = ctr.exec(name, "sh", "-c", script, timeout=60)
    first, second = output.text.splitlines()
    assert (output.code, first) == (7, second), output.error
