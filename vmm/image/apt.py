"""Debian packages: what depends on what, and their files, by way of apt.

The host's apt configuration and package lists say what exists and vouch for it
(``apt-secure(8)``). Everything apt writes goes to a directory of our own, and it is told
that nothing is installed, so that a dependency on the host's own packages is resolved too.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory

from vmm.image.command import run
from vmm.image.errors import ImageError

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_QUERY_TIMEOUT = 120.0
_DOWNLOAD_TIMEOUT = 1800.0


@dataclass(frozen=True, order=True)
class Package:
    """One version of one binary package."""

    name: str
    version: str
    architecture: str

    @property
    def filename(self) -> str:
        """The name apt gives to the package's file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Apt:
    """A view of the package archive with a cache of its own.

    Args:
        directory: where downloads and apt's caches are kept.
        sources: lines for ``sources.list(5)`` that replace the host's own; ``update`` must
            be called before anything else then. Empty: the host's sources and lists.
        architecture: Debian's name of another architecture than the host's, from the host's
            sources; ``update`` must be called before anything else then.
    """

    def __init__(self, directory: Path, sources: str = "", architecture: str = "") -> None:
        self._archives = directory / "archives"
        self._archives.mkdir(parents=True, exist_ok=True)
        (directory / "partial").mkdir(exist_ok=True)
        status = directory / "status"
        status.touch()
        settings = {
            "Dir::Cache": directory,
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::State::status": status,
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "0",
            "APT::Update::Post-Invoke": "",
            "APT::Update::Post-Invoke-Success": "",
            "Acquire::Languages": "none",
        }
        self._lists = directory / "lists"
        if architecture:
            settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
        if sources or architecture:
            self._lists.mkdir(exist_ok=True)
            settings["Dir::State::lists"] = self._lists
        if sources:
            source_list = directory / "sources.list"
            source_list.write_text(sources.rstrip() + "\n")
            settings |= {
                "Dir::Etc::sourcelist": source_list,
                "Dir::Etc::sourceparts": "-",
                "Dir::Etc::preferences": "-",
                "Dir::Etc::preferencesparts": "-",
            }
        self._options = [word for k, v in settings.items() for word in ("-o", f"{k}={v}")]

    def update(self, max_age: float = 0.0) -> None:
        """Fetch the package lists of this view's own sources.

        Args:
            max_age: seconds that lists fetched before are good for.

        Raises:
            ImageError: not one of them can be fetched, nor was there one before. With
                some missing, what can't be resolved without them says so later.
        """
        stamp = self._lists / ".updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < max_age:
            return
        try:
            run(["apt-get", *self._options, "-q", "update"], timeout=_DOWNLOAD_TIMEOUT)
        except ImageError:
            if not any(self._lists.glob("*_Packages*")):
                raise
        else:
            stamp.touch()

    def has(self, name: str) -> bool:
        """Tell whether there is a package of this name."""
        command = ["apt-cache", *self._options, "pkgnames", name]
        return name in run(command, timeout=_QUERY_TIMEOUT).split()

    def closure(self, names: Iterable[str]) -> list[Package]:
        """Return these packages and all they depend on, as for an empty system, sorted.

        Raises:
            ImageError: apt knows no such package, or can't satisfy a dependency.
        """
        wanted = list(names)
        try:
            text = run(
                ["apt-get", *self._options, "-s", "-q", "install", *wanted], timeout=_QUERY_TIMEOUT
            )
        except ImageError as error:
            raise ImageError(f"{error}\n  (does 'apt-get update' help?)") from error
        found = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", text, re.MULTILINE)
        return sorted(Package(name.partition(":")[0], *rest) for name, *rest in found)

    def candidate(self, name: str) -> tuple[Package, str]:
        """Return the version of a package apt would install, and its ``Depends`` field.

        Raises:
            ImageError: apt knows no such package.
        """
        try:
            text = run(
                ["apt-cache", *self._options, "show", "--no-all-versions", name],
                timeout=_QUERY_TIMEOUT,
            )
        except ImageError as error:
            raise ImageError(f"{error}\n  (does 'apt-get update' help?)") from error
        fields = dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))
        package = Package(fields["Package"], fields["Version"], fields["Architecture"])
        depends = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
        return package, depends

    def resolve(self, metapackage: str, pattern: str) -> Package:
        """Return the package behind a metapackage: its dependency that matches ``pattern``.

        Raises:
            ImageError: nothing it depends on matches.
        """
        found = self.dependencies(metapackage, pattern)
        if not found:
            raise ImageError(f"{metapackage} depends on nothing like {pattern}")
        return found[0]

    def dependencies(self, name: str, pattern: str) -> list[Package]:
        """Return what a package directly depends on that matches ``pattern``.

        Raises:
            ImageError: apt doesn't know the package or what it depends on.
        """
        _, depends = self.candidate(name)
        names = (
            word.partition("(")[0].strip().partition(":")[0] for word in re.split(r"[,|]", depends)
        )
        return [self.candidate(bare)[0] for bare in names if re.fullmatch(pattern, bare)]

    def fetch(self, packages: Iterable[Package]) -> list[Path]:
        """Download what isn't there yet and return the packages' files in the same order.

        Raises:
            ImageError: a download failed or isn't what the signed lists promise.
        """
        wanted = list(packages)
        missing = [p for p in wanted if not (self._archives / p.filename).exists()]
        if missing:
            with TemporaryDirectory(dir=self._archives) as directory:
                specs = [f"{p.name}={p.version}" for p in missing]
                run(
                    ["apt-get", *self._options, "-q", "download", *specs],
                    timeout=_DOWNLOAD_TIMEOUT,
                    cwd=Path(directory),
                )
                for package in missing:
                    (Path(directory) / package.filename).rename(self._archives / package.filename)
        return [self._archives / package.filename for package in wanted]


def sources_of(release: str) -> str:
    """Return the line for ``sources.list(5)`` of a Debian release, from the host's own mirror.

    Raises:
        ImageError: the host has no Debian mirror, or not Debian's keys.
    """
    if not _KEYRING.exists():
        raise ImageError(f"{_KEYRING} is missing; it is in debian-archive-keyring")
    fields = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    for line in run(command, timeout=_QUERY_TIMEOUT).splitlines():
        *what, mirror = line.split("|", 3)
        if what == ["Debian", "Debian", "main"]:
            return f"deb [signed-by={_KEYRING}] {mirror} {release} main"
    raise ImageError("the host's apt sources name no Debian mirror (sources.list(5))")


@contextmanager
def open_deb(path: Path) -> Iterator[tarfile.TarFile]:
    """Open the files of a package as a stream: members can be read once, in order.

    Raises:
        ImageError: the file is no package, or damaged.
    """
    with Popen(["dpkg-deb", "--fsys-tarfile", path], stdin=DEVNULL, stdout=PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
            while process.stdout.read(1 << 16):
                pass
        except tarfile.TarError as error:
            raise ImageError(f"{path}: not a readable package: {error}") from error
    if process.returncode:
        raise ImageError(f"{path}: dpkg-deb could not read it (exit status {process.returncode})")
