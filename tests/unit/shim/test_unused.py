from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shim import unused

ROOT = Path(__file__).parents[3]
_SHIM = """
from shim import unused
unused.leave_out()
import sys
import shim.daemon, trio
assert not sys.modules.keys() & {"ssl", "_hashlib", "google.protobuf.internal.decoder"}
try:
    trio.SSLStream(None, None)
except NotImplementedError as error:
    print(error)
"""


def test_shim_loads_without_what_is_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SHIM], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("trio._ssl is left out of the shim\n", "")


@pytest.mark.parametrize("name", unused.LEFT_OUT)
def test_what_is_left_out_is_there(name: str) -> None:
    assert find_spec(name) is not None, "renamed by its project: find out what takes its place"
