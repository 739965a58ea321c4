"""Files that the host pushes into the guest, through the agent's own RPC."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import trio

from protos.katapy import extension_pb2
from shim.agent import Agent
from shim.storage.sync import SyncedFiles
from shim.storage.watch import Watch
from shim.ttrpc.status import TtrpcError
from tests.integration.agent.conftest import LIMIT, AgentProcess, Guest
from tests.unit.shim.storage.test_tree import version

pytestmark = pytest.mark.root


async def test_a_volume_of_500_files_follows_within_a_second(
    agent: AgentProcess, guest: Guest, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    version(source, "..1", **{f"k{n}": "old" for n in range(500)})
    push = partial(Agent(guest.client, frozenset(), {}).push_files, "many")
    copy = agent.root / "sandbox/pushed/many"
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(SyncedFiles(str(source), push).run)
            assert (copy / "k499").read_text() == "old"
            with Watch() as watch:
                watch.add([str(copy)])
                version(source, "..2", **{f"k{n}": "new" for n in range(500)})
                began = time.monotonic()
                while (copy / "k499").read_text() != "new":
                    await watch.changed()
            print(f"500 files in {time.monotonic() - began:.3f} s")
            assert {(copy / f"k{n}").read_text() for n in range(500)} == {"new"}
            nursery.cancel_scope.cancel()


async def test_the_volume_can_be_taken_away(agent: AgentProcess, guest: Guest) -> None:
    changes = [
        extension_pb2.FileChange(path="", file_mode=0o040750),
        extension_pb2.FileChange(path="a/b/c", file_mode=0o100640, data=b"x", file_size=1),
    ]
    push = guest.extension.PushFiles
    request = extension_pb2.PushFilesRequest(volume="v", changes=changes)
    await push(request, timeout=LIMIT)
    folder = agent.root / "sandbox/pushed/v"
    assert (folder / "a/b/c").stat().st_mode & 0o777 == 0o640
    gone = extension_pb2.PushFilesRequest(
        volume="v", changes=[extension_pb2.FileChange(remove=True)]
    )
    await push(gone, timeout=LIMIT)
    await push(gone, timeout=LIMIT)
    assert not folder.exists()


@pytest.mark.parametrize("volume", ["", "..", "a/b"])
async def test_the_volume_is_a_single_name(guest: Guest, volume: str) -> None:
    with pytest.raises(TtrpcError, match="no name of a volume"):
        await guest.extension.PushFiles(
            extension_pb2.PushFilesRequest(volume=volume), timeout=LIMIT
        )
