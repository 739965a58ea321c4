"""The packet filter of a pod's guest through ``katapy iptables``, as a service mesh sets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.lib.runtime import Runtime
from tests.support.ctr import Ctr

pytestmark = [pytest.mark.root, pytest.mark.vm]

RULES = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT -p tcp -m tcp --dport {port} -j REDIRECT --to-ports 15001
COMMIT
"""


def test_rules_are_set_and_read(ctr: Ctr, runtime: Runtime, tmp_path: Path) -> None:
    def katapy(*words: str | Path, text: str = "", code: int = 0) -> str:
        command = [sys.executable, "-m", "shim.cli.main", "iptables", *map(str, words)]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=90, check=False,
            env={**os.environ, **runtime.env},
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    name = ctr.start("sleep", "1000")
    other = ctr.start("sleep", "1000")
    pod = ("--sandbox-id", name)
    assert "REDIRECT" not in katapy("get", *pod)
    assert "--dport 80 -j REDIRECT" in katapy("set", *pod, text=RULES.format(port=80))
    rules = tmp_path / "rules"
    rules.write_text(RULES.format(port=8080))
    katapy("set", *pod, "--v6", rules)
    assert "--dport 8080 -j REDIRECT" in katapy("get", *pod, "--v6")
    assert "--dport 80 -j REDIRECT" in katapy("get", *pod)
    assert "REDIRECT" not in katapy("get", "--sandbox-id", other)

    assert "restore" in katapy("set", *pod, text="*nonsense\n", code=1)
    assert "no pod 'nobody'" in katapy("get", "--sandbox-id", "nobody", code=1)
