"""A pod's host cgroups in the kernel's own hierarchies, and the sweeper on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cgroup.paths import Hierarchies, find_hierarchies
from shim.cgroup.pod_cgroup import make_pod_cgroup
from shim.cleanup import sweeper
from shim.cleanup.ledger import Ledger

pytestmark = pytest.mark.root

UNIFIED = "/sys/fs/cgroup/unified"  # where hybrid hosts have version 2


@pytest.fixture(params=["own", "unified"])
def hierarchies(request: pytest.FixtureRequest) -> Hierarchies:
    if request.param == "own":
        found = find_hierarchies(Path("/proc/self/mountinfo").read_text())
    else:
        there = os.path.exists(f"{UNIFIED}/cgroup.procs")
        found = Hierarchies(2, {"": UNIFIED} if there else {})
    if not found.mounts or not os.access(found.roots[0], os.W_OK):
        pytest.skip("no such cgroup hierarchy here")
    return found


@pytest.fixture
def parent(hierarchies: Hierarchies) -> Iterator[str]:
    path = f"/kt{os.getpid()}"
    yield path
    for root in hierarchies.roots:
        os.rmdir(root + path)


def _cgroups(pid: int) -> list[str]:
    return [row.split(":", 2)[2] for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("only", [True, False])
async def test_made_used_and_removed(
    hierarchies: Hierarchies,
    parent: str,
    process: subprocess.Popen[bytes],
    tmp_path: Path,
    only: bool,
) -> None:
    warnings: list[str] = []
    with Ledger.create(str(tmp_path), "n", "s") as ledger:
        pod = make_pod_cgroup(
            f"{parent}/s", "s", ledger, warnings.append,
            sandbox_cgroup_only=only, hierarchies=hierarchies,
        )  # fmt: skip
        assert pod is not None
        assert pod.splits == (not only and hierarchies.version == 1)
        pod.add(process.pid)
        pod.add_vcpus([process.pid])  # its one thread stands for a vCPU
        places = _cgroups(process.pid)
        assert places.count(f"{parent}/katapy_s") == len(hierarchies.roots)
        assert pod.oom_kills() == 0
        process.kill()
        process.wait()
        await pod.remove()
        assert ledger.entries() == []
        assert not any(os.path.exists(f"{root}{parent}/katapy_s") for root in hierarchies.roots)
    assert [text for text in warnings if "can't split" not in text] == []


def test_swept(
    hierarchies: Hierarchies, parent: str, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    problems: list[str] = []
    with Ledger.create(str(tmp_path), "n", "s") as ledger:
        pod = make_pod_cgroup(
            f"{parent}/s", "s", ledger, problems.append,
            sandbox_cgroup_only=True, hierarchies=hierarchies,
        )  # fmt: skip
        assert pod is not None
        pod.add(process.pid)
        assert sweeper.sweep(ledger, problems.append) == []
    assert problems == []
    assert process.wait() == -9
    assert not any(os.path.exists(f"{root}{parent}/katapy_s") for root in hierarchies.roots)
