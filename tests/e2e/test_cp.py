"""Files into and out of a running container: ``katapy cp`` over the shim's transfer service."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.lib.runtime import Runtime
from tests.support.ctr import Ctr

pytestmark = [pytest.mark.root, pytest.mark.vm]

Cp = Callable[..., bytes]


@pytest.fixture
def cp(runtime: Runtime) -> Cp:
    """Runs the command; gives its output, or what it says if it is to fail."""

    def run(source: str | Path, target: str | Path, *, data: bytes = b"", code: int = 0) -> bytes:
        command = [sys.executable, "-m", "shim.cli.main", "cp", str(source), str(target)]
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=90, check=False,
            env={**os.environ, **runtime.env},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_files_go_in_and_out(ctr: Ctr, cp: Cp, tmp_path: Path) -> None:
    name = ctr.start("sleep", "1000")
    ctr.start("sleep", "1000")  # another pod, which is not asked
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner/large").write_bytes(os.urandom(1 << 20) * 5)
    (tree / "script").write_text("#!/bin/sh\necho ran\n")
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("inner/large")

    cp(tree, f"{name}:/tmp")
    cp(tree / "script", f"{name}:/usr/local/new/run")
    assert ctr.exec(name, "/usr/local/new/run").text == "ran"
    cp(f"{name}:/tmp/tree", tmp_path / "back")
    assert (tmp_path / "back/inner/large").read_bytes() == (tree / "inner/large").read_bytes()
    assert os.readlink(tmp_path / "back/link") == "inner/large"
    assert (tmp_path / "back/script").stat().st_mode & 0o777 == 0o755

    # As archives, and into a directory that is there.
    with tarfile.open(fileobj=io.BytesIO(cp(f"{name}:/tmp/tree/script", "-"))) as tar:
        assert tar.getnames() == ["script"]
    cp("-", f"{name}:/opt/x", data=cp(f"{name}:/tmp/tree/inner", "-"))
    assert ctr.exec(name, "ls", "/opt/x").text == "inner"
    cp(f"{name}:/etc/hostname", tmp_path)
    assert (tmp_path / "hostname").read_text() == "busybox\n"

    # What a container hands over stays where it is meant to be.
    (tmp_path / "own").write_text("mine")
    script = f"mkdir /evil && ln -s {tmp_path}/own /evil/file"
    assert ctr.exec(name, "sh", "-c", script).code == 0
    cp(f"{name}:/evil", tmp_path)
    assert ctr.exec(name, "sh", "-c", "rm /evil/file && echo stolen > /evil/file").code == 0
    cp(f"{name}:/evil", tmp_path)
    assert (tmp_path / "own").read_text() == "mine"
    assert (tmp_path / "evil/file").read_text() == "stolen\n"

    assert b"No such file" in cp(f"{name}:/nowhere", tmp_path, code=1)
    assert b"No such file" in cp(tmp_path / "nowhere", f"{name}:/tmp", code=1)
    assert b"no container 'nobody'" in cp("nobody:/etc", tmp_path, code=1)
    assert b"ID:PATH" in cp(tree, tmp_path, code=1)
    assert sorted(os.listdir(tmp_path)) == ["back", "evil", "hostname", "own", "tree"]
