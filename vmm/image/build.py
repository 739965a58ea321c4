"""Builds a guest image: one call, the same bytes for the same inputs, kept by their hash."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vmm import arch as arches
from vmm.arch import Architecture
from vmm.errors import InvalidConfig
from vmm.image import debian, tuned
from vmm.image.apt import Apt, Package, sources_of
from vmm.image.errors import ImageError
from vmm.image.rootfs import RootTree
from vmm.image.sources import agent_sources, builder_sources, data_file
from vmm.image.store import (
    DEFAULT_CACHE,
    KINDS,
    GuestImage,
    KernelKind,
    image_directory,
    read_record,
    write_record,
)

# The guest's Python is its release's own; the library comes in a package beside it.
_PYTHON_METAPACKAGE, _PYTHON_PACKAGE = "python3-minimal", r"python3\.\d+-minimal"
_PROGRAM_PACKAGES = ("crun", "busybox-static", "iptables")
_LISTS_AGE_S = 12 * 3600.0
# The program that makes each kind of file system, and Debian's package of it.
_PACKERS = {
    "erofs": ("mkfs.erofs", "erofs-utils"),
    "squashfs": ("mksquashfs", "squashfs-tools"),
}


def _silent(_: str) -> None:
    pass


def build_image(
    kernel: KernelKind = "debian",
    cache_dir: Path = DEFAULT_CACHE,
    progress: Callable[[str], None] = _silent,
    *,
    architecture: str = "",
    release: str = "",
    apt: Apt | None = None,
    sources: Mapping[str, bytes] | None = None,
) -> GuestImage:
    """Return the guest image of the present inputs, building what isn't in the cache.

    Args:
        kernel: ``debian``, Debian's cloud kernel, ready in a minute; or ``tuned``, built from
            Debian's kernel source, which boots in half the time.
        cache_dir: images, packages and kernels are kept here.
        progress: told in a few words what is being done.
        architecture: by any of its names; empty is the host's.
        release: Debian release that the packages are of; empty is the host's own.
        apt: another package archive than the host's own.
        sources: other modules for the guest than our agent's, by path.

    Raises:
        ImageError: a tool or package is missing, or a step failed; the text names it.
    """
    if kernel not in KINDS:
        raise ImageError(f"no kernel {kernel!r}: there are {', '.join(KINDS)}")
    try:
        arch = arches.architecture(architecture)
    except InvalidConfig as error:
        raise ImageError(str(error)) from error
    foreign = arch.name != arches.host_architecture()
    if kernel == "tuned" and arch.name != "x86_64":
        raise ImageError(f"the tuned kernel is for x86_64 only, not for {arch.name}")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / "lock", progress):
        native = archive(cache_dir, arches.architecture(), release)
        apt = apt or (archive(cache_dir, arch, release) if foreign else native)
        if foreign or release:
            names = " and ".join(dict.fromkeys((arch.debian, arches.architecture().debian)))
            progress(f"updating the package lists of {names if release else arch.debian}")
            for view in {apt, native} if release else {apt}:
                view.update(max_age=_LISTS_AGE_S)
        if foreign and not apt.has(arch.kernel_package):
            raise ImageError(_not_in_release(arch, release))
        return _build(
            kernel,
            arch,
            cache_dir,
            progress,
            apt,
            native if foreign else None,
            agent_sources() if sources is None else sources,
        )


def archive(cache_dir: Path, arch: Architecture, release: str = "") -> Apt:
    """Return an architecture's package archive.

    Args:
        cache_dir: see :func:`build_image`.
        arch: the host's architecture or another one.
        release: Debian release; empty is the host's own.

    Raises:
        ImageError: the host's apt configuration doesn't tell where the release is.
    """
    foreign = arch.debian if arch.name != arches.host_architecture() else ""
    name = "-".join(filter(None, ("apt", foreign, release)))
    return Apt(cache_dir / name, sources_of(release) if release else "", foreign)


def _not_in_release(arch: Architecture, release: str) -> str:
    where = f"Debian {release}" if release else "the host's Debian release"
    text = f"{where} has no {arch.kernel_package} for {arch.debian}"
    advice = f"name another release: katapy image build --arch {arch.name} --release sid"
    return f"{text}, or the mirror does not give its package lists; {advice}"


def _build(
    kind: KernelKind,
    arch: Architecture,
    cache_dir: Path,
    progress: Callable[[str], None],
    apt: Apt,
    native: Apt | None,
    sources: Mapping[str, bytes],
) -> GuestImage:
    progress("resolving packages")
    packages = _root_packages(apt)
    kernel = debian.kernel_packages(apt, arch) if kind == "debian" else [tuned.source_package(apt)]
    key = _key(f"{kind} {arch.name}", [*packages, *kernel], sources, arch.rootfs)

    directory = image_directory(cache_dir, kind, arch.name, key)
    if image := read_record(directory):
        progress(f"image {kind}-{key[:12]} is there already")
        # What was asked for last is what find_image gives.
        image = replace(image, built=time.time())
        write_record(directory, image)
        return image
    vmlinux, release = (
        tuned.build_kernel(apt, kernel[0], cache_dir, progress) if kind == "tuned" else (None, "")
    )

    directory.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=directory.parent, prefix="build-") as work_name:
        work = Path(work_name)
        progress(f"fetching {len(packages)} packages")
        debs = apt.fetch(packages)
        progress("putting the root file system together")
        tree = _tree(work / "root", debs)
        tools = tree if native is None else _native_tools(native, packages, work / "tools")
        tree.add("etc/os-release", f"ID=katapy\nPRETTY_NAME=katapy guest {key[:12]}\n".encode())
        tree.add_agent(sources, data_file("init"))

        finished = work / "finished"
        finished.mkdir()
        initrd = None
        if vmlinux is not None:
            shutil.copyfile(vmlinux, finished / "vmlinux")
        else:
            progress(f"fetching {' and '.join(map(str, kernel))}")
            ready = debian.prepare_kernel(apt.fetch(kernel), arch, tree.busybox)
            (finished / "vmlinux").write_bytes(ready.kernel)
            initrd = finished / "initrd"
            initrd.write_bytes(ready.initrd)
            release = ready.release
            for path, data in ready.root_files.items():
                tree.add(path, data)

        progress("packing the root file system")
        tree.complete(tools)
        rootfs = finished / f"rootfs.{arch.rootfs}"
        tree.pack(rootfs, arch.rootfs)
        image = GuestImage(
            kind=kind,
            architecture=arch.name,
            kernel=finished / "vmlinux",
            initrd=initrd,
            rootfs=rootfs,
            kernel_args=debian.kernel_args(arch) if kind == "debian" else tuned.KERNEL_ARGS,
            key=key,
            kernel_release=release,
            agent_key=agent_key(sources),
            versions={package.name: package.version for package in [*packages, *kernel]},
            built=time.time(),
        )
        write_record(finished, image)
        shutil.rmtree(directory, ignore_errors=True)
        finished.rename(directory)
    made = read_record(directory)
    if made is None:
        raise ImageError(f"{directory}: the image just built isn't readable")
    return made


def _root_packages(apt: Apt) -> list[Package]:
    python = apt.resolve(_PYTHON_METAPACKAGE, _PYTHON_PACKAGE)
    library = f"lib{python.name.removesuffix('-minimal')}-stdlib"
    return apt.closure([python.name, library, *_PROGRAM_PACKAGES])


def _tree(directory: Path, debs: Iterable[Path]) -> RootTree:
    directory.mkdir()
    tree = RootTree(directory)
    for deb in debs:
        tree.add_package(deb)
    return tree


def _native_tools(apt: Apt, packages: list[Package], directory: Path) -> RootTree:
    """Return a tree of the host's architecture to complete a foreign one with.

    Python's bytecode and busybox's applets depend on the version alone.

    Raises:
        ImageError: the archive has other versions for the host's architecture.
    """
    own = _root_packages(apt)
    versions = {package.name: package.version for package in own}
    for package in packages:
        # Some architectures get updates later than others. Bytecode is the same for all of a
        # Python's series, which is in the package's name, and applets for all of an upstream
        # version.
        theirs, ours = package.version, versions.get(package.name, "")
        if package.name == "busybox-static":
            theirs, ours = theirs.partition("-")[0], ours.partition("-")[0]
        elif package.name.startswith("python3."):
            theirs = ours or theirs
        else:
            continue
        if theirs != ours:
            raise ImageError(
                f"{package} of {package.architecture} has no match for the host's "
                f"architecture, which has {versions.get(package.name) or 'none'}"
            )
    return _tree(directory, apt.fetch(own))


def agent_key(sources: Mapping[str, bytes] | None = None) -> str:
    """Return the hash of the agent's sources, to tell whether an image holds the present agent."""
    return _digest(agent_sources() if sources is None else sources)


def _key(kind: str, packages: list[Package], sources: Mapping[str, bytes], rootfs: str) -> str:
    parts = {
        "kind": kind.encode(),
        "packages": "\n".join(map(str, packages)).encode(),
        "mkfs": _mkfs(rootfs),
        "agent": _digest(sources).encode(),
        "builder": _digest(builder_sources()).encode(),
    }
    return _digest(parts)


def _mkfs(rootfs: str) -> bytes:
    # Old releases of the tools can't say their version.
    name, package = _PACKERS[rootfs]
    path = shutil.which(name)
    if path is None:
        raise ImageError(f"{name} is needed to build this guest image; it is in {package}")
    return Path(path).read_bytes()


def _digest(parts: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(parts.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the cache for ourselves; the kernel lets go of it if we die."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build in this cache")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
