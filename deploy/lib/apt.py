"""Debian packages: those the host lacks, and others unpacked beside the system.

The second apt configuration has its own lists, cache and (empty) dpkg status, so asking
it for a package yields the package with everything below it, libc included, whatever the
host has. Signatures are checked by apt against the installed debian-archive-keyring.
Source: apt.conf(5), apt-get(8), sources.list(5), deb-control(5).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.lib.command import DeployError, run
from deploy.lib.elf import relocate
from deploy.lib.work import locked, replacing, work_dir

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FRESH_SECONDS = 7 * 86400
"""How long unpacked packages are used before the mirror is asked for newer ones."""

UPDATE_TIMEOUT = 600.0
DOWNLOAD_TIMEOUT = 1800.0


def os_release() -> dict[str, str]:
    """The host's os-release(5) fields."""
    fields = {}
    for line in Path("/etc/os-release").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals:
            fields[key] = value.strip().strip('"')
    return fields


def codename() -> str:
    """The host's Debian release name, such as ``bookworm``.

    Raises: DeployError on something that is not Debian 12 or newer.
    """
    fields = os_release()
    if fields.get("ID") != "debian":
        raise DeployError(f"this needs Debian 12 or 13, not {fields.get('PRETTY_NAME')}")
    return fields.get("VERSION_CODENAME") or "sid"


def missing(packages: list[str]) -> list[str]:
    """Those of ``packages`` that are not installed on the host."""
    answer = run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", "*"],
        timeout=60,
    )
    installed = {
        line.split()[0] for line in answer.splitlines() if line.split()[1:] == ["installed"]
    }
    return [name for name in packages if name not in installed]


def install_missing(packages: list[str]) -> list[str]:
    """Install what the host lacks of ``packages``; returns what was installed.

    Raises: DeployError when apt can't, with apt's words.
    """
    wanted = missing(packages)
    if not wanted:
        return []
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], timeout=UPDATE_TIMEOUT, env=env)
    run(
        ["apt-get", "install", "--yes", "--no-install-recommends", *wanted],
        timeout=DOWNLOAD_TIMEOUT,
        env=env,
    )
    return wanted


@dataclass(frozen=True)
class Unpacked:
    """Packages unpacked in a directory of their own."""

    root: Path
    release: str
    versions: dict[str, str]
    """Package name to version, of the packages asked for."""

    def program(self, path: str) -> Path:
        """The unpacked file that would be installed as ``path`` (absolute)."""
        return self.root / path.lstrip("/")

    def describe(self) -> str:
        """One line for the user: names, versions and where they are from."""
        names = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{names} ({self.release})"


def fetch_debs(release: str, packages: list[str], programs: list[str]) -> Unpacked:
    """Unpack ``packages`` of a Debian release with all they depend on, beside the system.

    Params: ``programs`` are absolute paths of executables in the packages that will be
    run; they are bound to the libraries unpacked with them.
    Raises: DeployError when a package can't be had; the text names package and release.
    """
    target = work_dir() / "debs" / f"{release}-{'-'.join(packages)}"
    with locked(f"debs-{target.name}"):
        known = _load(target, programs)
        if known is not None and time.time() - (target / "versions.json").stat().st_mtime < (
            FRESH_SECONDS
        ):
            return known
        try:
            return _fetch(target, release, packages, programs)
        except DeployError as error:
            if known is None:
                raise
            # Older unpacked packages are still the authenticated ones of an earlier run.
            print(f"kept {known.describe()}: {error}", file=sys.stderr)
            return known


def _load(target: Path, programs: list[str]) -> Unpacked | None:
    try:
        record = json.loads((target / "versions.json").read_text())
    except (OSError, ValueError):
        return None
    if record["programs"] != programs:
        return None
    if record.get("root", str(target / "root")) != str(target / "root"):
        return None  # moved or copied: programs hold the absolute paths of their libraries
    return Unpacked(target / "root", record["release"], record["versions"])


def _fetch(target: Path, release: str, packages: list[str], programs: list[str]) -> Unpacked:
    apt = _SecondApt(release)
    with locked(f"apt-{release}"):
        apt.update()
        debs = apt.download(packages)
    versions = {}
    with replacing(target) as draft:
        root = draft / "root"
        # Packages of different releases disagree on whether /lib is a link to /usr/lib.
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        for deb in debs:
            _unpack(deb, root)
            name, version = run(
                ["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", deb], timeout=60
            ).split()
            if name in packages:
                versions[name] = version
        final_root = target / "root"
        for program in programs:
            relocate(root / program.lstrip("/"), root, final_root)
        record = {
            "release": release,
            "programs": programs,
            "versions": versions,
            "root": str(final_root),
        }
        (draft / "versions.json").write_text(json.dumps(record, indent=1))
    apt.forget_archives()
    return Unpacked(final_root, release, versions)


def _unpack(deb: Path, root: Path) -> None:
    # Through tar, because dpkg-deb would replace our links by the package's directories.
    run(
        ["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink',
         "sh", deb, root],
        timeout=300,
    )  # fmt: skip


class _SecondApt:
    """An apt with lists, cache and status of its own for one release."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.base = work_dir() / "apt" / release
        for folder in ("lists/partial", "archives/partial", "etc"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "status").touch()
        if not KEYRING.exists():
            raise DeployError(f"{KEYRING} is missing: install debian-archive-keyring")
        (self.base / "etc/sources.list").write_text(
            f"deb [signed-by={KEYRING}] {mirror()} {release} main\n"
        )
        self.config = self.base / "etc/apt.conf"
        self.config.write_text(
            host_transport()
            + "".join(f'{key} "{value}";\n' for key, value in self._settings().items())
        )

    def _settings(self) -> dict[str, str]:
        etc = self.base / "etc"
        return {
            "Dir::State": str(self.base),
            "Dir::State::lists": str(self.base / "lists"),
            "Dir::State::status": str(self.base / "status"),
            "Dir::Cache": str(self.base),
            "Dir::Cache::archives": str(self.base / "archives"),
            "Dir::Etc": str(etc),
            "Dir::Etc::sourcelist": str(etc / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            # The host's hooks and preferences are about the host.
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": run(["dpkg", "--print-architecture"], timeout=10).strip(),
            "APT::Architectures": run(["dpkg", "--print-architecture"], timeout=10).strip(),
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "true",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Debug::NoLocking": "true",
        }

    def _apt(self, *words: str, timeout: float) -> str:
        env = {"APT_CONFIG": str(self.config), "DEBIAN_FRONTEND": "noninteractive"}
        return run(["apt-get", "--yes", *words], timeout=timeout, env=env)

    def update(self) -> None:
        """Get the release's lists; apt refuses what the keyring doesn't vouch for."""
        self._apt("--error-on=any", "update", timeout=UPDATE_TIMEOUT)

    def download(self, packages: list[str]) -> list[Path]:
        """Get ``packages`` and everything they depend on into the cache."""
        self.forget_archives()
        try:
            self._apt("install", "--download-only", *packages, timeout=DOWNLOAD_TIMEOUT)
        except DeployError as error:
            raise DeployError(
                f"{', '.join(packages)} of Debian {self.release} can't be had: {error}"
            ) from error
        return sorted((self.base / "archives").glob("*.deb"))

    def forget_archives(self) -> None:
        """Remove downloaded packages; their unpacked form is kept elsewhere."""
        for deb in (self.base / "archives").glob("*.deb"):
            deb.unlink()


def mirror() -> str:
    """The Debian mirror that the host's own apt sources use for its release.

    Raises: DeployError when the sources name none.
    """
    answer = run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)",
         "Created-By: Packages"],
        timeout=60,
    )  # fmt: skip
    releases = {codename(), "stable", "oldstable", "testing", "unstable", "sid"}
    for line in answer.splitlines():
        release, component, uri = line.split(" ", 2)
        if release in releases and component == "main":
            return uri
    raise DeployError("the host's apt sources name no Debian mirror (see sources.list(5))")


def host_transport() -> str:
    """How the host's apt reaches its mirror: proxies, certificates, retries."""
    kept = ("acquire::http", "acquire::https", "acquire::check-", "acquire::retries")
    dump = run(["apt-config", "dump", "Acquire"], timeout=10, env={"LC_ALL": "C"})
    return "".join(line + os.linesep for line in dump.splitlines() if line.lower().startswith(kept))
