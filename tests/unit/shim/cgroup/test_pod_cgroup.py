"""A pod's cgroups on trees like the kernel's: what is made, who goes where, what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from shim.cgroup.paths import Hierarchies
from shim.cgroup.pod_cgroup import PodCgroup, make_pod_cgroup
from shim.cleanup.ledger import Ledger


@pytest.fixture
def warnings() -> list[str]:
    return []


Make = Callable[..., PodCgroup | None]


@pytest.fixture
def make(tmp_path: Path, warnings: list[str]) -> Make:
    ledger = Ledger.create(str(tmp_path / "state"), "ns", "pod")

    def run(path: str, hierarchies: Hierarchies, *, only: bool = True) -> PodCgroup | None:
        return make_pod_cgroup(
            path,
            "pod",
            ledger,
            warnings.append,
            sandbox_cgroup_only=only,
            hierarchies=hierarchies,
        )

    return run


def _v2(root: Path, *, on: str = "") -> Hierarchies:
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma")
    (root / "cgroup.subtree_control").write_text(on)
    return Hierarchies(2, {"": str(root)})


def _v1(root: Path, *names: str) -> Hierarchies:
    for name in names:
        (root / name).mkdir(parents=True)
    return Hierarchies(1, {name: str(root / name) for name in names})


def test_version_2(make: Make, tmp_path: Path, warnings: list[str]) -> None:
    root = tmp_path / "cg"
    pod = make("/kubepods/pod1/abc", _v2(root))
    assert pod is not None
    assert not pod.splits
    own = root / "kubepods/pod1/katapy_pod"
    assert own.is_dir()
    # A file keeps the end of what was there; the last one asked for is at its start.
    assert (root / "cgroup.subtree_control").read_text().startswith("+pids")
    (own / "cgroup.procs").touch()
    pod.add(42)
    assert (own / "cgroup.procs").read_text() == "42"
    pod.add_vcpus([1, 2])
    assert not (own / "tasks").exists()
    assert warnings == []


def test_a_slices_controllers_are_left_to_systemd(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "cg"
    assert make("a-b.slice:cri:abc", _v2(root)) is not None
    assert (root / "a.slice/a-b.slice/katapy_pod").is_dir()
    assert (root / "cgroup.subtree_control").read_text() == ""


def test_version_2_does_not_split(make: Make, tmp_path: Path, warnings: list[str]) -> None:
    pod = make("/p/abc", _v2(tmp_path / "cg"), only=False)
    assert pod is not None
    assert not pod.splits
    assert "version 2 can't split" in warnings[0]


def test_version_1_splits(make: Make, tmp_path: Path, warnings: list[str]) -> None:
    root = tmp_path / "cg"
    pod = make("/p/abc", _v1(root, "cpu", "memory"), only=False)
    assert pod is not None
    assert pod.splits
    for name in ("cpu", "memory"):
        (root / name / "p/katapy_pod/tasks").touch()
        (root / name / "katapy_overhead/pod/cgroup.procs").touch()
    pod.add(42)
    pod.add_vcpus([43])
    for name in ("cpu", "memory"):
        assert (root / name / "katapy_overhead/pod/cgroup.procs").read_text() == "42"
        assert (root / name / "p/katapy_pod/tasks").read_text() == "43"
    assert warnings == []


def test_version_1_cpu_sets_come_from_the_parent(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "cg"
    hierarchies = _v1(root, "cpuset")
    (root / "cpuset/cpuset.cpus").write_text("0-3\n")
    (root / "cpuset/cpuset.mems").write_text("0\n")
    for folder in ("p", "p/katapy_pod"):
        (root / "cpuset" / folder).mkdir()
        (root / "cpuset" / folder / "cpuset.cpus").write_text("1" if folder == "p" else "\n")
        (root / "cpuset" / folder / "cpuset.mems").write_text("\n")
    make("/p/abc", hierarchies)
    own = root / "cpuset/p/katapy_pod"
    assert ((own / "cpuset.cpus").read_text()[0], (own / "cpuset.mems").read_text()[0]) == (
        "1",
        "0",
    )


def test_what_is_missing_is_told_once(make: Make, tmp_path: Path, warnings: list[str]) -> None:
    root = tmp_path / "cg"
    hierarchies = _v1(root, "cpu", "memory")
    (root / "memory/p").write_text("in the way")
    pod = make("/p/abc", hierarchies)
    assert pod is not None
    assert len(warnings) == 1
    assert f"{root}/memory/p/katapy_pod: Not a directory" in warnings[0]
    pod.add(1)  # no cgroup.procs on this file system
    pod.add(2)
    assert len(warnings) == 2
    assert "takes no process" in warnings[1]


def test_no_path_and_no_hierarchy(make: Make, tmp_path: Path) -> None:
    assert make("", _v2(tmp_path / "cg")) is None
    assert make("/p/abc", Hierarchies(0, {})) is None


@pytest.mark.parametrize("file", ["memory.events", "memory.oom_control"])
def test_oom_kills(make: Make, tmp_path: Path, file: str) -> None:
    root = tmp_path / "cg"
    pod = make("/p/abc", _v2(root))
    assert pod is not None
    assert pod.oom_kills() == 0
    (root / "p/katapy_pod" / file).write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert pod.oom_kills() == 2


async def test_removal_waits_until_it_is_empty(
    make: Make, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    root = tmp_path / "cg"
    pod = make("/p/abc", _v1(root, "cpu"), only=False)
    assert pod is not None
    busy = root / "cpu/p/katapy_pod/child"
    busy.mkdir()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pod.remove)
        await trio.sleep(1)
        assert busy.parent.is_dir()
        busy.rmdir()
    assert not busy.parent.exists()
    assert not (root / "cpu/katapy_overhead").exists()
    assert (root / "cpu/p").is_dir()  # not ours
    assert pod._ledger.entries() == []
