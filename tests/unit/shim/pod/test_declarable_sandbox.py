"""What a client may ask of a pod by the sandbox API, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.cleanup.ledger import Ledger
from shim.config.model import Config
from shim.errors import AlreadyExists, FailedPrecondition
from shim.log import Log
from shim.oci.declared_pod import DeclaredPod
from shim.pod.declarable_sandbox import DeclarableSandbox
from shim.pod.direct_volumes import DirectVolumes
from shim.stages import Stages
from shim.stdio.streaming import Streams


@pytest.fixture
def sandbox(tmp_path: Path) -> DeclarableSandbox:
    none: Any = None  # no VM is made here
    return DeclarableSandbox(
        namespace="n",
        sandbox_id="s",
        config=Config(),
        ledger=Ledger.create(str(tmp_path), "n", "s"),
        runtime_dir=tmp_path / "r",
        backends=none,
        publish=lambda event: None,
        log=Log(-1),
        stages=Stages({}),
        direct=DirectVolumes("s", ""),
        streams=Streams(),
    )


async def test_a_pod_is_declared_once(sandbox: DeclarableSandbox) -> None:
    pod = DeclaredPod({"ociVersion": "1.0.2"})
    sandbox.declare(pod)
    with pytest.raises(AlreadyExists):
        sandbox.declare(pod)


async def test_a_pod_starts_when_it_was_declared(sandbox: DeclarableSandbox) -> None:
    with pytest.raises(FailedPrecondition):
        await sandbox.start()
