"""Fixtures: containerd daemons of our own, ctr, events, and a look for what is left behind.

A session has one daemon per containerd series, started on first use. Everything a run
names carries one random token, so runs on one host don't meet.
"""

from __future__ import annotations

import io
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.lib.apt import Unpacked
from deploy.lib.busybox import rootfs_tar, write_image
from deploy.lib.containerd import Daemon, config_text
from deploy.lib.guest import prepare_guest
from deploy.lib.runtime import Runtime, prepare_runtime
from tests.conftest import DEFAULT_RUNTIME
from tests.support import containerds
from tests.support.cri_daemon import EROFS
from tests.support.ctr import Ctr
from tests.support.events import Events, open_events
from tests.support.isolation import have_own
from tests.support.leaks import SHARED_DIRS, Scope, assert_nothing_left, snapshot
from tests.support.processes import become_subreaper


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "series" not in metafunc.fixturenames:
        return
    wanted = list(containerds.chosen(metafunc.config.getoption("--containerd")))
    if metafunc.definition.get_closest_marker("core") is None:
        wanted = containerds.first(wanted)
    metafunc.parametrize("series", wanted, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runtime") == DEFAULT_RUNTIME:
        return
    skip = pytest.mark.skip(reason="about VMs, and --runtime names another runtime")
    for item in items:
        if item.get_closest_marker("vm") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def token() -> str:
    """The mark in everything that this run names."""
    return f"kt{secrets.token_hex(3)}"


@pytest.fixture(scope="session")
def own_run_directories() -> None:
    """Nobody else's shim sockets, FIFOs, state and network namespaces; nobody sees ours.

    One mount namespace for all daemons of the session, those with CRI too, and shared, as
    systemd leaves a host's.
    """
    become_subreaper()
    have_own([*SHARED_DIRS, Path("/run/netns"), Path("/run/xtables")])


@pytest.fixture(scope="session")
def scratch(token: str) -> Iterator[Path]:
    """A directory of this run with a short path, for sockets."""
    folder = Path(tempfile.gettempdir()) / token
    folder.mkdir(mode=0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def image(scratch: Path) -> Path:
    """The busybox image as a file to import."""
    path = scratch / "busybox.tar"
    write_image(path)
    return path


@pytest.fixture(scope="session")
def runtime(request: pytest.FixtureRequest, scratch: Path) -> Runtime:
    """The runtime under test: its name, its launcher's directory, its configuration."""
    name = request.config.getoption("--runtime")
    if name != DEFAULT_RUNTIME:
        return Runtime(name)
    runtime = prepare_runtime(scratch / "r", Path(sysconfig.get_path("purelib")))
    # The agent is in the image, so an image of earlier sources would test an earlier agent.
    prepare_guest(Path(sys.executable), runtime)
    return runtime


@pytest.fixture(scope="session")
def containerd(request: pytest.FixtureRequest, series: str, scratch: Path) -> Unpacked:
    """The programs of the containerd of the given series."""
    folder = containerds.chosen(request.config.getoption("--containerd"))[series]
    return containerds.programs(series, folder, scratch)


@pytest.fixture(scope="session")
def daemon(
    series: str, containerd: Unpacked, scratch: Path, runtime: Runtime, own_run_directories: None
) -> Iterator[Daemon]:
    """containerd of the given series, running; a test may stop and start it."""
    folder = scratch / series
    (folder / "tmp").mkdir(parents=True)
    version = 3 if series.startswith("2.") else 2
    path = [runtime.launcher_dir] if runtime.launcher_dir else []
    plugins = _blockfile(folder)
    if containerds.number(series) >= (2, 2):
        path.append(containerds.mkfs_erofs(folder))
        plugins += EROFS
    daemon = Daemon(
        containerd,
        folder,
        config=config_text(folder, version=version, plugins=plugins),
        path=path,
        # Whatever forgets its temporary files forgets them where the leak check looks.
        env={"TMPDIR": str(folder / "tmp"), **runtime.env},
    )
    daemon.start()
    yield daemon
    daemon.stop()


def _blockfile(folder: Path) -> str:
    scratch_file = folder / "scratch.ext4"
    with open(scratch_file, "wb") as handle:
        handle.truncate(64 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", "-O", "^has_journal", scratch_file], check=True)
    return f"""
[plugins."io.containerd.snapshotter.v1.blockfile"]
  scratch_file = "{scratch_file}"
  fs_type = "ext4"
  mount_options = ["loop"]
"""


@pytest.fixture(scope="session")
def base_ctr(daemon: Daemon, token: str, image: Path, runtime: Runtime) -> Iterator[Ctr]:
    """ctr with the image imported; tests use ``ctr``, which cleans up after each."""
    ctr = Ctr(daemon, token, runtime.name)
    ctr.ok("namespaces", "create", token)
    ctr.ok("images", "import", image)
    yield ctr
    ctr.remove_all()
    for path in Path("/sys/fs/cgroup").glob(f"**/{token}"):
        path.rmdir()  # ctr's parent group for the namespace, which runc leaves


@pytest.fixture(scope="session")
def leak_scope(daemon: Daemon, token: str, runtime: Runtime) -> Scope:
    """What the leak check looks at for this daemon."""
    task_dir = f"io.containerd.runtime.v2.task/{token}"
    state = runtime.state_dir
    return Scope(
        token=token,
        state_dirs=(
            daemon.folder / "state/io.containerd.runtime.v2.task",
            daemon.folder / "root/io.containerd.runtime.v2.task",
            daemon.folder / "tmp",
            *([state] if state else []),
        ),
        lasting=frozenset(
            [f"{daemon.folder}/{top}/{task_dir}" for top in ("state", "root")]
            + [f"{state}/s", f"{state}/{token}"]
            # containerd's and runc's own directories, made once.
            + [f"/run/containerd/{name}" for name in ("fifo", "runc", f"runc/{token}", "s")]
        ),
        expected=lambda: (daemon.pid,),
    )


@pytest.fixture
def configured(runtime: Runtime, tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Gives the ``ctr run`` option for a configuration with some sections added."""

    def write(sections: str) -> tuple[str, str]:
        target = tmp_path / "katapy.toml"
        given = runtime.config.read_text() if runtime.config else ""
        target.write_text(given)
        # A section that both have is no error in a drop-in.
        (tmp_path / "config.d").mkdir()
        (tmp_path / "config.d/test.toml").write_text(f"{sections}\n")
        return "--runtime-config-path", str(target)

    return write


@pytest.fixture
def plain_rootfs(tmp_path: Path) -> Path:
    """The busybox image's files in a directory that no snapshotter knows."""
    folder = tmp_path / "plain"
    with tarfile.open(fileobj=io.BytesIO(rootfs_tar())) as tar:
        tar.extractall(folder)
    return folder


@pytest.fixture
def leak_check(leak_scope: Scope) -> Iterator[None]:
    """Fails the test if anything of ours is there after it that wasn't before."""
    before = snapshot(leak_scope)
    yield
    assert_nothing_left(leak_scope, before)


@pytest.fixture
def ctr(base_ctr: Ctr, leak_check: None) -> Iterator[Ctr]:
    """ctr for one test: its containers are removed at the end, and nothing may be left."""
    yield base_ctr
    base_ctr.remove_all()


@pytest.fixture
def events(ctr: Ctr) -> Iterator[Events]:
    """The namespace's events during one test."""
    with open_events(ctr) as events:
        yield events
