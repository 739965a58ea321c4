"""The sweeper against the kernel: mounts, links, cgroups, in namespaces of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]

PRELUDE = """
import os, subprocess, sys
from shim.cleanup import sweeper
from shim.cleanup.ledger import Ledger
root = sys.argv[1]
ledger = Ledger.create(root + "/state", "n", "s")
problems = []
def run(*command):
    subprocess.run(command, check=True)
def mounted(path):
    return any(line.split()[4] == path for line in open("/proc/self/mountinfo"))
"""

MOUNTS = """
base = root + "/m"
source = root + "/source"
os.makedirs(source)
open(source + "/precious", "w").close()
ledger.add("dir", path=base, tree=True)
os.makedirs(base + "/inner")
for _ in range(3):
    ledger.add("mount", target=base + "/inner")
    run("mount", "--bind", source, base + "/inner")
ledger.add("mount", target=base + "/never")
busy = open(base + "/inner/precious")
assert mounted(base + "/inner")
assert sweeper.sweep(ledger, problems.append) == [] and problems == [], problems
assert not os.path.exists(base) and os.path.exists(source + "/precious")
"""

FOREIGN_MOUNT = """
base = root + "/m"
source = root + "/source"
os.makedirs(source + "/deep")
open(source + "/precious", "w").close()
ledger.add("dir", path=base, tree=True)
os.makedirs(base + "/inner")
run("mount", "--bind", source, base + "/inner")
left = sweeper.sweep(ledger, problems.append)
assert [e.kind for e in left] == ["dir"]
assert "is a mount point: unmount it first" in problems[0], problems
assert os.path.exists(source + "/precious")
run("umount", base + "/inner")
assert sweeper.sweep(ledger, problems.append) == []
"""

LINKS = """
def links():
    return sorted(os.listdir("/sys/class/net"))
run("mount", "-t", "sysfs", "sysfs", "/sys")
run("ip", "tuntap", "add", "kpa0", "mode", "tap")
run("ip", "tuntap", "add", "kpa1", "mode", "tap")
ledger.add("netdev", name="kpa0", netns="")
ledger.add("netdev", name="kpa1", netns="/proc/self/ns/net")
ledger.add("netdev", name="never", netns="")
ledger.add("netdev", name="eth0", netns="/run/netns/gone")
open(root + "/notns", "w").close()
ledger.add("netdev", name="eth0", netns=root + "/notns")
assert "kpa0" in links() and "kpa1" in links()
assert sweeper.sweep(ledger, problems.append) == [] and problems == [], problems
assert "kpa0" not in links() and "kpa1" not in links()
"""

CGROUP = """
import time
bases = ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"]
base = next((b for b in bases if os.path.exists(b + "/cgroup.procs")), None)
if base is None:
    sys.exit(77)
name = "/katapy-test-%d" % os.getpid()
path = base + name
ledger.add("pod_cgroup", name=name)
try:
    os.makedirs(path + "/inner")
except OSError:
    ledger.remove(ledger.entries()[0])
    sys.exit(77)
child = subprocess.Popen(["sleep", "1000"])
with open(path + "/inner/cgroup.procs", "w") as file:
    file.write(str(child.pid))
assert sweeper.sweep(ledger, problems.append) == [] and problems == [], problems
assert not os.path.exists(path) and child.wait() == -9
"""


@pytest.mark.parametrize(
    ("script", "namespaces"),
    [(MOUNTS, "-m"), (FOREIGN_MOUNT, "-m"), (LINKS, "-mn"), (CGROUP, "-m")],
    ids=["mounts", "foreign mount", "links", "cgroup"],
)
def test_sweep(script: str, namespaces: str, tmp_path: Path) -> None:
    code = PRELUDE + script + "\nassert ledger.close() and os.listdir(root + '/state') == []\n"
    command = ["unshare", namespaces, sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode == 77:
        pytest.skip("no cgroup hierarchy can be written to here")
    assert done.returncode == 0, done.stderr
