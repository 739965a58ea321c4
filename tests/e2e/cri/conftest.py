"""Fixtures: a containerd with CRI and a pod network, and a kubelet that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lib.apt import Unpacked
from deploy.lib.containerd import Daemon
from deploy.lib.runtime import Runtime
from deploy.lib.tools import fetch_cni_plugins
from tests.conftest import DEFAULT_RUNTIME
from tests.support import containerds, versions
from tests.support.cri_client import CriClient, CriError
from tests.support.cri_daemon import NAMESPACE, cri_config, write_cni, write_pause_image
from tests.support.leaks import Scope, Snapshot, leaked, snapshot, sockets
from tests.support.node_network import NetworkNamespace, open_netns
from tests.support.pods import Kubelet
from tests.support.waiting import eventually

_READY_TIMEOUT = 30.0
_CLEAN_TIMEOUT = 20.0


@pytest.fixture(scope="session")
def network(own_run_directories: None, token: str) -> Iterator[NetworkNamespace]:
    """The network namespace of the daemon, of its bridge and of its port mappings."""
    with open_netns(token) as namespace:
        yield namespace


@pytest.fixture(scope="session")
def cri_daemon(
    series: str,
    containerd: Unpacked,
    scratch: Path,
    token: str,
    image: Path,
    runtime: Runtime,
    network: NetworkNamespace,
) -> Iterator[Daemon]:
    """containerd of the given series with CRI on, its images imported."""
    plugins = versions.obtain("CNI plugins", "bookworm", fetch_cni_plugins)
    folder = scratch / f"cri{series}"
    (folder / "tmp").mkdir(parents=True)
    write_cni(folder / "cni")
    write_pause_image(folder / "pause.tar")
    programs = [runtime.launcher_dir] if runtime.launcher_dir else []
    has_layers = containerds.number(series) >= (2, 2)
    if has_layers:
        programs.append(containerds.mkfs_erofs(folder))
    config = cri_config(
        folder,
        runtime,
        version=3 if series.startswith("2.") else 2,
        plugins=plugins.program("/usr/lib/cni"),
        erofs=has_layers,
    )
    daemon = Daemon(
        containerd,
        folder,
        config=config,
        path=programs,
        env={"TMPDIR": str(folder / "tmp"), **runtime.env},
        prefix=network.command(),
    )
    daemon.start()
    try:
        for tar in (image, folder / "pause.tar"):
            daemon.ctr("images", "import", str(tar), namespace=NAMESPACE, timeout=60)
        yield daemon
    finally:
        daemon.stop()
        # The pods' parent, which is the kubelet's to remove.
        for path in sorted(Path("/sys/fs/cgroup").glob(f"**/{token}"), reverse=True):
            path.rmdir()


@pytest.fixture(scope="session")
def cri_client(cri_daemon: Daemon) -> Iterator[CriClient]:
    """CRI's API, which answers and finds its network."""
    client = CriClient(cri_daemon.address)

    def ready() -> bool:
        try:
            conditions = client.call("Status", timeout_s=5).status.conditions
        except CriError:
            return False
        # Another one says that something of the host, such as cgroup v1, is deprecated.
        met = {condition.type for condition in conditions if condition.status}
        return met >= {"RuntimeReady", "NetworkReady"}

    eventually(ready, "CRI to be ready", timeout=_READY_TIMEOUT)
    yield client
    client.close()


@pytest.fixture(scope="session")
def cri_scope(cri_daemon: Daemon, token: str, runtime: Runtime) -> Scope:
    """What the leak check looks at for this daemon."""
    folder = cri_daemon.folder
    task_dirs = [folder / top / "io.containerd.runtime.v2.task" for top in ("state", "root")]
    sandbox_dirs = [
        folder / top / "io.containerd.sandbox.controller.v1.shim" for top in ("state", "root")
    ]
    cri_dirs = list(folder.glob("*/io.containerd.grpc.v1.cri*"))
    state = runtime.state_dir
    return Scope(
        token=token,
        state_dirs=(
            *task_dirs,
            *sandbox_dirs,
            *cri_dirs,
            Path("/run/netns"),
            folder / "tmp",
            *([state] if state else []),
        ),
        lasting=frozenset(
            [str(path / NAMESPACE) for path in (*task_dirs, *sandbox_dirs)]
            + [f"{path}/{name}" for path in cri_dirs for name in ("containers", "sandboxes")]
            + [f"{state}/s", f"{state}/{NAMESPACE}"]
            + [f"/run/containerd/{name}" for name in ("fifo", "runc", f"runc/{NAMESPACE}", "s")]
        ),
        expected=lambda: (cri_daemon.pid,),
    )


def _snapshot(scope: Scope, network: NetworkNamespace, folder: Path) -> Snapshot:
    links = {line.split(":")[1].strip() for line in network.output("ip", "-o", "link").splitlines()}
    rules = network.output("iptables-save").splitlines()
    addresses = folder / "cni/addresses/pods"
    found = snapshot(scope)
    return {
        **found,
        "link": frozenset(),  # of the host; the daemon's network namespace is looked at below
        # All pods are below a group of the run's name; others of the host are not ours.
        "cgroup": frozenset(path for path in found["cgroup"] if scope.token in path),
        # Unix sockets are listed by network namespace, and the daemon has its own.
        "socket": frozenset(sockets(scope, network.output("cat", "/proc/net/unix"))),
        # The bridge comes with the first pod and stays.
        "pod link": frozenset(links - {"cni0"}),
        "iptables rule": frozenset(line for line in rules if "CNI-DN-" in line or "10.88." in line),
        "pod address": frozenset(path.name for path in addresses.glob("*.*.*.*")),
    }


@pytest.fixture
def kubelet(
    request: pytest.FixtureRequest,
    cri_daemon: Daemon,
    cri_client: CriClient,
    cri_scope: Scope,
    network: NetworkNamespace,
    token: str,
    tmp_path: Path,
) -> Iterator[Kubelet]:
    """Makes pods for one test; they are removed at its end, and nothing may be left."""
    handler = "katapy" if request.config.getoption("--runtime") == DEFAULT_RUNTIME else "runc"
    before = _snapshot(cri_scope, network, cri_daemon.folder)
    kubelet = Kubelet(cri_daemon, cri_client, network, tmp_path / "logs", token, handler)
    yield kubelet
    kubelet.remove_all()
    left: list[str] = []

    def gone() -> bool:
        left[:] = leaked(before, _snapshot(cri_scope, network, cri_daemon.folder))
        return not left

    try:
        eventually(gone, "clean-up", timeout=_CLEAN_TIMEOUT)
    except AssertionError:
        raise AssertionError("left behind:\n  " + "\n  ".join(left)) from None
