"""Kernel modules: what each needs, the order to load them in, and modprobe's tables.

Packages don't ship ``modules.dep``; it is made here from the modules' own ``.modinfo``
(``depmod(8)``, ``modules.dep(5)``). Modules are unpacked at build time: the guest would pay
twelve times as much for it under TCG.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from vmm.image.apt import open_deb
from vmm.image.elf import ElfError, section
from vmm.image.errors import ImageError

_SUFFIXES = (".ko", ".ko.xz")
_KERNELS = ("vmlinuz-", "vmlinux-")


@dataclass(frozen=True)
class Module:
    """One loadable module, unpacked.

    Args:
        name: as in ``/proc/modules``, with underscores.
        path: relative to ``/lib/modules/<release>``.
        data: contents of the ``.ko`` file.
        depends: names of the modules it needs directly.
        aliases: what else the kernel may ask for it by.
    """

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


class ModuleSet:
    """The modules of one kernel.

    Args:
        files: contents by path relative to ``/lib/modules/<release>``, packed or not.
        builtin: names of what the kernel has built in.
    """

    def __init__(self, files: Mapping[str, bytes], builtin: Iterable[str] = ()) -> None:
        self._files = {module_name(path): (path, data) for path, data in files.items()}
        self._builtin = frozenset(builtin)
        self._read = lru_cache(maxsize=None)(self._parse)

    @classmethod
    def from_packages(cls, debs: Iterable[Path]) -> tuple[str, bytes, ModuleSet]:
        """Read a kernel from Debian's packages of it: its release, boot image and modules.

        Raises:
            ImageError: the packages hold no kernel, or can't be read.
        """
        files, builtin, image, release = {}, [], b"", ""
        for path, data in _files(debs):
            if path.parts[0] == "boot" and path.name.startswith(_KERNELS):
                release, image = path.name.partition("-")[2], data()
            elif path.match("lib/modules/*/vmlinuz"):  # where newer releases have it
                release, image = path.parts[2], data()
            elif path.name.endswith(_SUFFIXES):
                files[str(PurePosixPath(*path.parts[3:]))] = data()
            elif path.name == "modules.builtin":
                builtin = [module_name(line) for line in data().decode().split()]
        if not image:
            raise ImageError("the kernel packages hold no kernel")
        return release, image, cls(files, builtin)

    def order(self, names: Iterable[str]) -> list[Module]:
        """Return these modules and all they need, each after what it needs.

        What the kernel has built in is left out.

        Raises:
            ImageError: there is no such module, or modules need each other in a circle.
        """
        ordered: dict[str, Module] = {}
        for name in names:
            self._visit(name, ordered, ())
        return list(ordered.values())

    def have(self, names: Iterable[str]) -> list[str]:
        """Return those of the names that this kernel has, as a module or built in."""
        return [name for name in names if name in self._files or name in self._builtin]

    def under(self, *directories: str) -> list[str]:
        """Return the names of all modules below these directories, sorted."""
        return sorted(
            name for name, (path, _) in self._files.items() if path.startswith(directories)
        )

    def _visit(self, name: str, ordered: dict[str, Module], path: tuple[str, ...]) -> None:
        if name in ordered or name in self._builtin:
            return
        if name in path:
            raise ImageError(f"kernel modules need each other: {' → '.join((*path, name))}")
        module = self._read(name)
        for dependency in module.depends:
            self._visit(dependency, ordered, (*path, name))
        ordered[name] = module

    def _parse(self, name: str) -> Module:
        if name not in self._files:
            raise ImageError(f"this kernel has no module {name}")
        path, data = self._files[name]
        try:
            if path.endswith(".xz"):
                path, data = path.removesuffix(".xz"), lzma.decompress(data)
            info = list(_modinfo(data))
        except (lzma.LZMAError, ElfError) as error:
            raise ImageError(f"kernel module {path} is damaged: {error}") from error
        depends = [d for key, value in info if key == "depends" for d in value.split(",") if d]
        aliases = [value for key, value in info if key == "alias"]
        return Module(name, path, data, tuple(map(_underscored, depends)), tuple(aliases))


def _files(debs: Iterable[Path]) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    for deb in debs:
        with open_deb(deb) as archive:
            for member in archive:
                if member.isfile():
                    path = PurePosixPath(member.name.removeprefix("./").removeprefix("usr/"))
                    contents = archive.extractfile(member)
                    assert contents is not None
                    yield path, contents.read


def module_name(path: str) -> str:
    """Return a module's name from its path: ``a/virtio-rng.ko.xz`` is ``virtio_rng``."""
    return _underscored(PurePosixPath(path).name.partition(".")[0])


def dependency_table(modules: Iterable[Module]) -> str:
    """Return ``modules.dep`` for modules that are given in loading order."""
    known: dict[str, Module] = {}
    needs: dict[str, list[str]] = {}
    lines = []
    for module in modules:
        known[module.name] = module
        # modprobe loads the list from its end, so what is needed first comes last.
        direct = [d for d in module.depends if d in known]
        needs[module.name] = list(dict.fromkeys(d for m in direct for d in (m, *needs[m])))
        chain = sorted(needs[module.name], key=list(known).index, reverse=True)
        lines.append(f"{module.path}: {' '.join(known[d].path for d in chain)}".rstrip())
    return "\n".join(lines) + "\n"


def alias_table(modules: Iterable[Module]) -> str:
    """Return ``modules.alias``."""
    return "".join(
        f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases
    )


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _modinfo(data: bytes) -> Iterator[tuple[str, str]]:
    for entry in section(data, ".modinfo").split(b"\0"):
        key, separator, value = entry.decode("utf-8", "replace").partition("=")
        if separator:
            yield key, value
