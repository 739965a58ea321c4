"""`deploy/install` and `deploy/uninstall` in a Debian 13 of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lib.apt import KEYRING, host_transport, mirror
from deploy.lib.runtime import SHIM
from deploy.lib.work import REPOSITORY

pytestmark = [pytest.mark.root, pytest.mark.slow]

CHECKOUT = "/srv/katapy"
_CREATE_TIMEOUT = 600.0
_RUN_TIMEOUT = 900.0
_HOST_FILES = [Path("/etc/resolv.conf"), Path("/etc/ssl/certs/ca-certificates.crt")]


class DebianRoot:
    """A Debian in a directory; commands run in it with /proc, /sys and /dev of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str, timeout: float = _RUN_TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run a command in it. The mounts live in a namespace that ends with the command."""
        script = (
            'mount --bind "$0" "$0" && cd "$0" && mount -t proc proc proc && '
            "mount --rbind /sys sys && mount --rbind /dev dev && "
            'pivot_root . . && umount -l . && exec "$@"'
        )
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
             "sh", "-c", script, self.root, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            env={**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": "/tmp", "KATAPY_WORK": ""},
        )  # fmt: skip

    def files(self) -> set[str]:
        """What is in the places that an installation may touch."""
        found: set[str] = set()
        for top in ("opt", "usr/local", "etc/katapy", "var/cache/katapy", "run/katapy"):
            for folder, directories, files in os.walk(self.root / top):
                found.update(os.path.join(folder, name) for name in (*directories, *files))
        return found


@pytest.fixture(scope="module")
def debian13(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRoot]:
    """A minimal Debian 13 with a copy of this checkout's files."""
    folder = tmp_path_factory.mktemp("debian13")
    root = folder / "root"
    settings = folder / "apt.conf"
    settings.write_text(host_transport())
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=apt", f"--aptopt={settings}", f"--keyring={KEYRING}",
         "--include=python3,ca-certificates,mount", "trixie", root, mirror()],
        check=True, timeout=_CREATE_TIMEOUT,
    )  # fmt: skip
    for path in _HOST_FILES:
        if path.exists():
            shutil.copyfile(path, root / path.relative_to("/"))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            target = root / CHECKOUT.lstrip("/") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target)
    yield DebianRoot(root)
    shutil.rmtree(root)


def test_install_use_and_uninstall(debian13: DebianRoot) -> None:
    before = debian13.files()
    for _ in range(2):  # the second time changes nothing
        done = debian13.run(f"{CHECKOUT}/deploy/install", "--no-image")
        assert done.returncode == 0, done.stdout
    version = debian13.run(f"/usr/local/bin/{SHIM}", "-v")
    assert version.returncode == 0, version.stdout
    assert SHIM in version.stdout
    assert debian13.run("katapy", "version").returncode == 0
    config = debian13.root / "etc/katapy/config.toml"
    config.write_text(config.read_text() + "\n# mine\n")

    assert debian13.run(f"{CHECKOUT}/deploy/uninstall").returncode == 0
    left = debian13.files() - before
    assert {Path(name).name for name in left} == {"config.toml", "config.d"}
    assert config.read_text().endswith("# mine\n")
    assert debian13.run(f"{CHECKOUT}/deploy/uninstall", "--purge").returncode == 0
    assert debian13.files() == before


def test_install_leaves_foreign_files_alone(debian13: DebianRoot) -> None:
    foreign = debian13.root / "usr/local/bin/katapy"
    foreign.write_text("#!/bin/sh\n")
    done = debian13.run(f"{CHECKOUT}/deploy/install", "--no-image")
    assert done.returncode == 1
    assert "/usr/local/bin/katapy exists" in done.stdout
    assert debian13.run(f"{CHECKOUT}/deploy/uninstall").returncode == 0
    assert foreign.read_text() == "#!/bin/sh\n"
    foreign.unlink()


@pytest.mark.vm
def test_quickstart_runs_a_container(debian13: DebianRoot) -> None:
    for _ in range(2):
        done = debian13.run(f"{CHECKOUT}/deploy/quickstart")
        assert done.returncode == 0, done.stdout
        kernels = re.findall(r"^  (host|guest) kernel +(\S+)$", done.stdout, re.M)
        assert [name for name, _ in kernels] == ["host", "guest"]
        assert kernels[0][1] == os.uname().release != kernels[1][1]
    assert not list((debian13.root / "tmp").glob("katapy-*"))
