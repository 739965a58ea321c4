"""`deploy/quickstart`: from a fresh Debian to a container in a virtual machine."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from deploy.lib import apt, busybox
from deploy.lib.command import DeployError
from deploy.lib.containerd import Daemon, config_text, fetch_containerd
from deploy.lib.guest import PACKAGES as GUEST_PACKAGES
from deploy.lib.guest import prepare_guest
from deploy.lib.progress import Progress
from deploy.lib.runtime import Runtime, prepare_runtime
from deploy.lib.venv import dependencies, prepare_venv, site_packages
from deploy.lib.work import work_dir

NAMESPACE = "katapy-quickstart"
CONTAINER = "hello"
RUN_TIMEOUT = 180.0
_CONFIG_VERSIONS = {"bookworm": 2, "trixie": 2}


def host_packages() -> list[str]:
    """Debian packages that running containers in VMs needs on this host."""
    # Debian 12 has its virtiofsd in QEMU's package; newer releases have one of their own.
    virtiofsd = [] if apt.codename() == "bookworm" else ["virtiofsd"]
    return [
        "busybox-static", "debian-archive-keyring", "e2fsprogs", "iproute2", "patchelf",
        "python3-venv", "qemu-system-x86", *virtiofsd, *GUEST_PACKAGES,
    ]  # fmt: skip


def require_root() -> None:
    """Raises: DeployError for anybody but root."""
    if os.geteuid() != 0:
        raise DeployError("this needs root: it installs packages, mounts and makes cgroups")


def main() -> int:
    """Set up, run a container, take everything that runs or is mounted away again."""
    progress = Progress()
    try:
        require_root()
        release = apt.codename()
        with progress.stage("Debian packages"):
            installed = apt.install_missing(sorted(set(host_packages())))
        if installed:
            progress.note("installed " + " ".join(installed))
        venv = work_dir() / "venv"
        with progress.stage("Python packages in a virtual environment"):
            python = prepare_venv(venv, dependencies(tests=False))
        with progress.stage(f"containerd of Debian {release}, unpacked beside the system"):
            packages = fetch_containerd(release)
        progress.note(packages.describe())
        # Sockets need a short path, which a checkout's own directory may not have.
        with tempfile.TemporaryDirectory(prefix="katapy-") as scratch:
            folder = Path(scratch)
            runtime = prepare_runtime(folder, site_packages(venv))
            with progress.stage("guest kernel and image"):
                said = prepare_guest(python, runtime)
            for line in said.splitlines():
                progress.note(line)
            with progress.stage("container image of the host's busybox"):
                busybox.write_image(folder / "busybox.tar")
            daemon = Daemon(
                packages,
                folder / "containerd",
                config=config_text(folder / "containerd", version=_CONFIG_VERSIONS.get(release, 3)),
                path=[folder / "bin"],
                env=runtime.env,
            )
            _run_container(progress, daemon, runtime, folder / "busybox.tar")
    except (DeployError, KeyboardInterrupt) as error:
        print(f"quickstart: {error or 'interrupted'}", file=sys.stderr)
        return 1
    print("\nWhere the time went:")
    for title, seconds in progress.durations:
        print(f"  {seconds:7.2f} s  {title}")
    print(f"\nEverything is in {work_dir()}; nothing is left running.")
    return 0


def _run_container(progress: Progress, daemon: Daemon, runtime: Runtime, image: Path) -> None:
    with progress.stage("containerd of our own, started"):
        daemon.start()
    try:
        with progress.stage("image imported"):
            daemon.ctr("images", "import", image, namespace=NAMESPACE, timeout=60)
        words = ["--rm", "--runtime", runtime.name, busybox.IMAGE_NAME, CONTAINER, "uname", "-r"]
        with progress.stage("container run in a VM: ctr run " + " ".join(words)):
            guest = daemon.ctr("run", *words, namespace=NAMESPACE, timeout=RUN_TIMEOUT).strip()
    except DeployError as error:
        raise DeployError(f"{error}\n{daemon.log_tail()}") from error
    finally:
        _remove(daemon)
        daemon.stop()
        _remove_cgroups()
    host = os.uname().release
    print(f"\n  host kernel   {host}\n  guest kernel  {guest}", flush=True)
    if guest == host:
        raise DeployError("the container ran on the host's kernel")


def _remove(daemon: Daemon) -> None:
    # `--rm` has done this, unless ctr was interrupted.
    for words in (("tasks", "delete", "--force"), ("containers", "delete")):
        with contextlib.suppress(DeployError):
            daemon.ctr(*words, CONTAINER, namespace=NAMESPACE, timeout=30)


def _remove_cgroups() -> None:
    # Containers' cgroups are below their namespace's, which is nobody's to remove but ours.
    hierarchies = Path("/sys/fs/cgroup")
    for path in (hierarchies / NAMESPACE, *hierarchies.glob(f"*/{NAMESPACE}")):
        with contextlib.suppress(OSError):
            path.rmdir()
