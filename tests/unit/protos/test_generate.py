"""The generated modules belong to the .proto files beside them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import protos

PROTOS = Path(protos.__file__).parent


def test_checked_in_files_are_fresh() -> None:
    run = subprocess.run(
        [sys.executable, PROTOS / "generate", "--check"], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_every_module_imports() -> None:
    names = [f"protos.{path.parent.name}.{path.stem}_pb2" for path in PROTOS.glob("*/*.proto")]
    assert len(names) >= 20
    for name in names:
        assert importlib.import_module(name).DESCRIPTOR.name.startswith("protos/")
