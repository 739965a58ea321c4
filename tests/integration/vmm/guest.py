"""A guest of a few megabytes for the VMM's own tests: Debian's cloud kernel and busybox.

It answers on two virtio-serial ports: the agent port echoes 24-byte prefaces and then
whole 24-byte blocks; the command port runs each line it gets in a shell.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import trio

from vmm.channel import connect_unix

_CACHE = Path(__file__).parents[3] / ".cache" / "vmm-test-guest"
_BUSYBOX = Path("/bin/busybox")
_META_PACKAGE = "linux-image-cloud-amd64"
_MODULES = (
    "virtio_pci virtio_mmio virtio_blk virtio_net virtio_console virtio_balloon virtio-rng "
    "virtio_mem virtiofs vmw_vsock_virtio_transport pvpanic-pci button "
    "virtio_scsi sd_mod virtio_pmem nfit nd_pmem"
)
COMMAND_PORT = "org.katapy.test.0"
_END = "--end "

_INIT = r"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
echo BOOTED > /dev/console
port() { for p in /sys/class/virtio-ports/*; do
    [ "$(cat "$p/name")" = "$1" ] && echo "/dev/${p##*/}"; done; }
agent=$(port org.katapy.agent.0); command=$(port org.katapy.test.0)
if [ -n "$agent" ]; then
    while :; do
        dd bs=24 count=1 iflag=fullblock 2>/dev/null || sleep 0.05
    done 0<>"$agent" 1>&0 &
fi
[ -n "$command" ] && exec 3<>"$command"
while [ -n "$command" ]; do
    while read -r line <&3; do eval "$line" >&3 2>&1; echo "--end $?" >&3; done
    sleep 0.05
done
sleep 1000000
"""


@dataclass(frozen=True)
class GuestFiles:
    """Kernel and initial ramdisk of the test guest."""

    kernel: Path
    initrd: Path


@lru_cache(maxsize=2)
def build(more: tuple[str, ...] = ()) -> GuestFiles:
    """Return the guest's files, made on first use and kept for the next run.

    Args:
        more: further kernel modules that it loads.
    """
    package = _package_name()
    modules = (*_MODULES.split(), *more)
    directory = _CACHE / "+".join((package, *more))
    files = GuestFiles(directory / "vmlinuz", directory / "initrd")
    recipe = directory / "init"
    text = f"{_INIT}# {' '.join(modules)}\n"
    if not (files.initrd.exists() and recipe.exists() and recipe.read_text() == text):
        directory.mkdir(parents=True, exist_ok=True)
        _build(package, modules, directory, files)
        recipe.write_text(text)
    return files


def _package_name() -> str:
    words = subprocess.run(
        ["apt-cache", "depends", "--no-recommends", _META_PACKAGE],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    return next(word for word in words if word.startswith("linux-image-6"))


def _build(package: str, modules: tuple[str, ...], directory: Path, files: GuestFiles) -> None:
    unpacked = directory / "unpacked"
    _run("apt-get", "-q", "download", package, cwd=directory)
    (deb,) = directory.glob("*.deb")
    _run("dpkg-deb", "-x", str(deb), str(unpacked))
    deb.unlink()
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    shutil.copy(kernel, files.kernel)
    release = kernel.name.removeprefix("vmlinuz-")
    # The package leaves modules.dep to be made at installation.
    _run("depmod", "-b", str(unpacked), release)
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "proc", "sys", "dev", "modules", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy(_BUSYBOX, root / "bin" / "busybox")
    listing = _run(str(_BUSYBOX), "--list").split()
    for applet in listing:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    _copy_modules(modules, unpacked / "lib" / "modules" / release, root / "modules")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    temporary = files.initrd.with_suffix(".new")
    pack = f"find . | cpio --quiet -o -H newc > {shlex.quote(str(temporary))}"
    _run("sh", "-c", pack, cwd=root)
    temporary.replace(files.initrd)
    shutil.rmtree(root)
    shutil.rmtree(unpacked)


def _copy_modules(modules: tuple[str, ...], source: Path, target: Path) -> None:
    needs = {}
    for line in (source / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[path] = dependencies.split()
    by_name = {Path(path).stem: path for path in needs}
    order: dict[str, None] = {}
    for name in modules:
        path = by_name[name]
        order |= dict.fromkeys([*reversed(needs[path]), path])
    for path in order:
        shutil.copy(source / path, target / Path(path).name)
    (target / "order").write_text("".join(f"{Path(path).name}\n" for path in order))


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


class GuestShell:
    """The guest's command port."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    @classmethod
    async def open(cls, socket: Path) -> GuestShell:
        return cls(await connect_unix(socket))

    async def run(self, command: str) -> str:
        """Run a line in the guest and return its output; a failing one is an error."""
        await self.send(command)
        return await self.result(command)

    async def send(self, command: str) -> None:
        """Give the guest a line to run."""
        await self._stream.send_all(command.encode() + b"\n")

    async def result(self, command: str) -> str:
        """Return what the next outstanding line printed."""
        with trio.fail_after(60):
            while (found := self._buffer.find(_END.encode())) < 0 or (
                b"\n" not in self._buffer[found:]
            ):
                data = await self._stream.receive_some(65536)
                assert data, "the guest's command port was closed"
                self._buffer += data
        end = self._buffer.index(b"\n", found)
        output = self._buffer[:found].decode()
        status = int(self._buffer[found + len(_END) : end])
        self._buffer = self._buffer[end + 1 :]
        assert status == 0, f"{command}: exit code {status}: {output}"
        return output.strip()

    async def until(self, condition: str, seconds: int = 20) -> None:
        """Wait in the guest until a shell condition holds."""
        step = f"sleep 0.1; i=$((i+1)); [ $i -lt {seconds * 10} ] || break"
        await self.run(f"i=0; until {condition}; do {step}; done; {condition}")

    async def aclose(self) -> None:
        await self._stream.aclose()
