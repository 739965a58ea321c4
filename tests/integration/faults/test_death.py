"""A shim killed at any step of Create: containerd's ``delete`` finds all that is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.cleanup import process_table
from shim.cleanup.ledger import find_all
from shim.ttrpc.status import TtrpcError
from tests.integration.faults.conftest import Installation, Shim
from tests.support.backends import Backend, make_backend
from tests.support.processes import become_subreaper, descendants
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.root]


@pytest.mark.parametrize(
    "moment",
    [
        "stdio",
        "after share mount",
        "after virtiofsd process",
        "VMM process",
        "after VMM process",
        "agent dial",
        "after rootfs bind",
        "after CreateContainer",
    ],
)
async def test_killed_at(shim: Shim, moment: str) -> None:
    await _killed(shim, f"die {moment}")


@pytest.mark.parametrize("number", [2, 5, 8])
async def test_killed_at_an_entry_of_the_ledger(shim: Shim, number: int) -> None:
    await _killed(shim, f"die ledger {number}")


@pytest.fixture
def backend(
    request: pytest.FixtureRequest,
    installation: Installation,
    vhost_device_vsock: Path,
    tmp_path: Path,
) -> Iterator[Backend]:
    """The VMM that the test's parameter names, for the shims started meanwhile."""
    backend = make_backend(request.param, tmp_path, vhost_device_vsock)
    assert installation.runtime.config is not None
    drop_in = installation.runtime.config.parent / "config.d" / "backend.toml"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"{backend.config}\n")
    # Whatever the shim leaves becomes our child, if nothing else tells whose it was.
    become_subreaper()
    before = _running()
    yield backend
    drop_in.unlink()
    eventually(lambda: _running() <= before, "the VMM's end", timeout=5)


def _running() -> set[int]:
    return {item.pid for item in descendants(os.getpid()) if item.state != "Z"}


@pytest.mark.parametrize("backend", ["clh", "firecracker", "jailed firecracker"], indirect=True)
async def test_killed_before_another_vmm_is_recorded(backend: Backend, shim: Shim) -> None:
    await _killed(shim, "die after VMM process")


async def _killed(shim: Shim, fault: str) -> None:
    pid = shim.pid
    started = process_table.start_time(pid)
    with pytest.raises(TtrpcError):
        await shim.create(fault)
    assert shim.struck
    assert started is not None
    assert process_table.wait_for_end(pid, started, 10)
    assert shim.delete().exit_status == 137
    state = str(shim.installation.state)
    assert list(find_all(state)) == []
    assert process_table.find_by_marker(shim.mark) == []
    assert not os.path.exists(shim.socket)
    left = [os.path.join(f, name) for f, _, names in os.walk(state) for name in names]
    assert left == []
    assert os.listdir(f"{state}/s") == [] if os.path.isdir(f"{state}/s") else True
    root = str(shim.installation.root)
    eventually(lambda: root not in Path("/proc/self/mountinfo").read_text(), "mounts go", timeout=5)
