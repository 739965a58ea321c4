"""A container of another architecture than the host's, in an emulated VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.lib.busybox import write_image
from deploy.lib.runtime import Runtime
from tests.support.ctr import Ctr
from vmm.arch import architecture, host_architecture
from vmm.image.apt import Apt, open_deb
from vmm.image.build import build_image

pytestmark = [pytest.mark.vm, pytest.mark.root]

FOREIGN = architecture("aarch64" if host_architecture() == "x86_64" else "x86_64")
IMAGE = f"localhost/katapy/busybox:{FOREIGN.oci}"
RUN_TIMEOUT = 180.0


def debian_busybox(cache: Path) -> bytes:
    """The static busybox that is in the guest image too, so that it is there already."""
    apt = Apt(cache / f"apt-{FOREIGN.debian}", architecture=FOREIGN.debian)
    package, _ = apt.candidate("busybox-static")
    (deb,) = apt.fetch([package])
    with open_deb(deb) as archive:
        for member in archive:
            if member.name.endswith("bin/busybox"):
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise AssertionError(f"no busybox in {deb}")


@pytest.fixture(scope="module")
def foreign(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration for guests of the architecture, and a container image of it."""
    assert runtime.config is not None
    folder = tmp_path_factory.mktemp("foreign")
    config = folder / "katapy.toml"
    config.write_text(runtime.config.read_text() + f'guest_arch = "{FOREIGN.name}"\n')
    cache = Path(runtime.config.read_text().split('"')[1])
    build_image("debian", cache, architecture=FOREIGN.name)
    image = folder / "busybox.tar"
    write_image(image, IMAGE, architecture=FOREIGN.oci, busybox=debian_busybox(cache))
    return config, image


def test_foreign_container(ctr: Ctr, foreign: tuple[Path, Path]) -> None:
    config, image = foreign
    platform = f"linux/{FOREIGN.oci}"
    ctr.ok("images", "import", "--platform", platform, image)
    name = ctr.new_id()
    options = ("--runtime", ctr.runtime, "--runtime-config-path", config, "--platform", platform)
    started = ctr("run", "--detach", *options, IMAGE, name, "sleep", "1000", timeout=RUN_TIMEOUT)
    assert started.code == 0, started.error
    output = ctr.exec(name, "uname", "-m", timeout=60)
    assert (output.code, output.text) == (0, FOREIGN.name), output.error
    script = "head -c 1048576 /dev/urandom >/big; md5sum </big; cat /big | md5sum; exit 7"
    output = ctr.exec(name, "sh", "-c", script, timeout=60)
    first, second = output.text.splitlines()
    assert (output.code, first) == (7, second), output.error
