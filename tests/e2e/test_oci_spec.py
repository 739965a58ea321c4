"""What a container's OCI spec asks for is what its processes find in the guest.

The containers of a test share one VM, as members of one pod.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ctr import Ctr, Output
from tests.support.events import Events
from tests.support.processes import process

pytestmark = [pytest.mark.root, pytest.mark.vm]

MIB = 1 << 20
Spec = dict[str, Any]


class Pod:
    """A pod whose containers are made from specs."""

    def __init__(self, ctr: Ctr, rootfs: Path, folder: Path) -> None:
        self.ctr = ctr
        self._rootfs = rootfs
        self._folder = folder
        self._base = json.loads(ctr.ok("oci", "spec").stdout)
        self.id = ctr.new_id()
        self.start(["sleep", "1000"], name=self.id, kind="sandbox")

    def spec(self, args: list[str], kind: str = "container", **linux: Any) -> Spec:
        """A container's spec with members of its ``linux`` section replaced."""
        spec: Spec = json.loads(json.dumps(self._base))
        spec["root"] = {"path": str(self._rootfs)}
        spec["process"].update(args=args, env=["PATH=/bin"], terminal=False)
        prefix = "io.kubernetes.cri"
        spec["annotations"] = {f"{prefix}.container-type": kind, f"{prefix}.sandbox-id": self.id}
        spec["linux"].update(linux)
        return spec

    def run(self, spec: Spec, name: str = "") -> Output:
        """Run a container in the foreground."""
        return Ctr.finish(self._command(spec, name or self.ctr.new_id(), "--rm"), timeout=60)

    def start(self, args: list[str], *, name: str = "", kind: str = "container",
              **linux: Any) -> str:  # fmt: skip
        """Run a container in the background."""
        name = name or self.ctr.new_id()
        argv = self._command(self.spec(args, kind, **linux), name, "--detach", "--null-io")
        Ctr.expect_ok(Ctr.finish(argv, timeout=90), argv)
        return name

    def _command(self, spec: Spec, name: str, *options: str) -> list[str]:
        config = self._folder / f"{name}.json"
        config.write_text(json.dumps(spec))
        runtime = self.ctr.runtime
        return self.ctr.command("run", *options, "--runtime", runtime, "--config", config, name)


@pytest.fixture
def pod(ctr: Ctr, plain_rootfs: Path, tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(ctr, plain_rootfs, tmp_path)
    yield pod
    ctr.remove_all()


def _caps(*bits: int) -> str:
    return f"{sum(1 << bit for bit in bits):016x}"


def test_process(pod: Pod) -> None:
    script = (
        "id -u; id -g; id -G; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj;"
        "grep -E 'NoNewPrivs|Seccomp:|Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t'"
    )
    spec = pod.spec(["sh", "-c", script])
    ambient = ["CAP_NET_RAW"]
    spec["process"].update(
        user={"uid": 1000, "gid": 1001, "additionalGids": [10, 2000], "umask": 0o27},
        capabilities={
            "bounding": ["CAP_NET_RAW", "CAP_CHOWN"],
            **dict.fromkeys(("inheritable", "permitted", "effective", "ambient"), ambient),
        },
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 333, "hard": 444}],
        noNewPrivileges=True,
        oomScoreAdj=321,
    )
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    output = pod.run(spec)
    raw = _caps(13)
    assert output.text.splitlines() == [
        *("1000", "1001", "1001 10 2000", "0027", "333", "444", "321"),
        *(f"CapInh:{raw}", f"CapPrm:{raw}", f"CapEff:{raw}", f"CapBnd:{_caps(0, 13)}"),
        *(f"CapAmb:{raw}", "NoNewPrivs:1", "Seccomp:2"),
    ], output.error
    # An exec has what ctr takes from the container's spec.
    name = pod.ctr.new_id()
    spec["process"]["args"] = ["sleep", "1000"]
    argv = pod._command(spec, name, "--detach", "--null-io")
    Ctr.expect_ok(Ctr.finish(argv, timeout=60), argv)
    score = Path(f"/proc/{pod.ctr.pid(pod.id)}/oom_score_adj")  # the VMM's
    assert score.read_text().strip() == "321"
    exec_script = "id -G; ulimit -n; grep -E 'NoNewPrivs|CapAmb' /proc/self/status | tr -d '\\t'"
    assert pod.ctr.exec(name, "sh", "-c", exec_script).text.splitlines() == [
        *("1001 10 2000", "333", f"CapAmb:{raw}", "NoNewPrivs:1")
    ]  # fmt: skip


def host_disks() -> list[dict[str, object]]:
    """The host's disks as containerd lists them for a privileged container."""
    found = []
    for number in Path("/sys/class/block").glob("*/dev"):
        major, _, minor = number.read_text().strip().partition(":")
        path = f"/dev/{number.parent.name}"
        found.append({"path": path, "type": "b", "major": int(major), "minor": int(minor)})
    return found


def test_confinement(pod: Pod, tmp_path: Path) -> None:
    # Seccomp
    script = "mkdir /tmp; echo $?; mkdir /tmp/x; id -u"
    denied = [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
    seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": denied}
    output = pod.run(pod.spec(["sh", "-c", script], seccomp=seccomp))
    assert output.text.splitlines() == ["1", "0"]
    assert "Operation not permitted" in output.error

    # Masked and read-only paths, read-only root
    spec = pod.spec(
        ["sh", "-c", "wc -c </proc/cmdline; ls /bin | wc -l; echo 1 >/proc/sys/vm/swappiness;"
         "touch /etc/x; touch /new"],
        maskedPaths=["/proc/cmdline", "/bin/nothing", "/sys/block"],
        readonlyPaths=["/proc/sys", "/etc"],
    )  # fmt: skip
    spec["root"]["readonly"] = True
    output = pod.run(spec)
    assert output.text.splitlines()[0] == "0"
    assert output.error.count("Read-only file system") == 3

    # A disk that the host has not is refused.
    disk = {"path": "/dev/disk", "type": "b", "major": 8, "minor": 250}
    assert "8:250" in pod.run(pod.spec(["true"], devices=[disk])).error

    # Devices: those of the host that mean something else in the guest are not there.
    devices = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7},
        {"path": "/dev/card", "type": "c", "major": 240, "minor": 0},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
    ]
    script = (
        "echo x >/dev/mine; stat -c '%t:%T %a %u' /dev/mine; ls /dev/card; ls -l /dev/pipe;"
        "mknod /mem c 1 1 && head -c 1 /mem | wc -c; rm /mem"
    )
    output = pod.run(pod.spec(["sh", "-c", script], devices=devices))
    lines = output.text.splitlines()
    assert lines[0] == "1:3 640 7"
    assert lines[1].startswith("prw-------")
    assert lines[2] == "0"  # bytes of /dev/mem
    assert "/dev/card: No such file" in output.error
    assert "/mem: Operation not permitted" in output.error

    # A device rule of the spec's own
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 1, "access": "rwm"},
    ]
    script = "mknod /mem c 1 1 && { : </mem && echo opened; }; rm /mem"
    spec = pod.spec(["sh", "-c", script], resources={"devices": rules})
    for kind in ("bounding", "effective", "permitted"):
        spec["process"]["capabilities"][kind] += ["CAP_SYS_RAWIO"]
    assert pod.run(spec).text == "opened"

    # Privileged: the guest's devices in place of the host's, but not the agent's port
    script = "ls /dev; head -c 1 /dev/vda | wc -c"
    spec = pod.spec(
        ["sh", "-c", script],
        devices=host_disks(),
        resources={"devices": [{"allow": True, "access": "rwm"}]},
    )
    words = pod.run(spec).text.split()
    assert {"vda", "kmsg", "null"} <= set(words)
    assert "sdx" not in words
    assert not [word for word in words if word.startswith("vport")]
    assert words[-1] == "1"  # the byte of the disk

    # Propagation of the root
    for word, mark in (("rshared", "shared:"), ("rslave", "master:"), ("rprivate", "- ")):
        script = "grep ' / / ' /proc/self/mountinfo || grep -m1 ' / ' /proc/self/mountinfo"
        output = pod.run(pod.spec(["sh", "-c", script], rootfsPropagation=word))
        if word != "rslave":  # a slave of nobody shows no mark
            assert mark in output.text, (word, output.text)
        assert output.code == 0

    # A user namespace
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user", "cgroup")]
    script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; cat /sys/class/net/lo/mtu"
    spec = pod.spec(["sh", "-c", script], uidMappings=maps, gidMappings=maps, namespaces=namespaces)
    output = pod.run(spec)
    assert output.text.split() == ["0", "100000", "65536"] * 2 + ["0", "65536"], output.error


def test_limits(pod: Pod, events: Events) -> None:
    resources = {
        "cpu": {"shares": 512, "quota": 20_000, "period": 100_000, "cpus": "0"},
        "memory": {"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 64 * MIB},
        "pids": {"limit": 7},
        "blockIO": {"weight": 500},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}, {"pageSize": "1GB", "limit": 0}],
        "unified": {"memory.high": str(60 * MIB), "cpu.idle": "0"},
    }
    files = [
        *("cpu.weight", "cpu.max", "cpuset.cpus.effective", "memory.max", "memory.low"),
        *("pids.max", "memory.high", "hugetlb.2MB.max", "hugetlb.1GB.max"),
    ]
    script = (
        "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); "
        f"for f in {' '.join(files)}; do cat $f 2>&1; done;"
        "(for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait);"
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done;"
        "busybox fallocate -l 4M /huge/a; busybox fallocate -l 2M /huge/b || echo full;"
        "grep -E 'nr_throttled' cpu.stat"
    )
    spec = pod.spec(["sh", "-c", script], resources=resources)
    spec["mounts"].append({"destination": "/huge", "type": "hugetlbfs", "source": "none",
                           "options": ["pagesize=2M"]})  # fmt: skip
    spec["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )
    output = pod.run(spec)
    lines = output.text.splitlines()
    assert lines[:9] == [
        *("20", "20000 100000", "0", str(64 * MIB), str(32 * MIB)),
        *("7", str(60 * MIB), str(4 * MIB), "0"),
    ], output.error
    assert "can't fork" in output.error
    assert lines[-2] == "full", output.error
    assert output.error.count("No space left") == 1
    assert int(lines[-1].split()[1]) > 0

    # The guest's OOM killer, and its event before the exit
    name = pod.ctr.new_id()
    spec = pod.spec(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"],
                    resources={"memory": {"limit": 32 * MIB}})  # fmt: skip
    assert pod.run(spec, name).code == 137
    events.wait_for(name, "/tasks/exit", timeout=20, exit_status=137)
    topics = events.topics(name)
    assert topics.index("oom") < topics.index("exit")
    assert "oom" not in events.topics(pod.id)


def test_hooks(pod: Pod, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = 'printf "%s " $KIND >>$NOTES; readlink /proc/self/ns/net >>$NOTES; cat >>$NOTES; '
    script += "echo >>$NOTES"
    kinds = ("poststop", "prestart", "createRuntime", "createContainer", "poststart")
    hooks: Spec = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", script],
                "env": [f"KIND={kind}", f"NOTES={notes}", "PATH=/bin:/usr/bin"]}]
        for kind in kinds
    }  # fmt: skip
    guest = {"path": "/bin/sh", "args": ["sh", "-c", "uname -r >/from-the-hook"]}
    spec = pod.spec(["sh", "-c", "cat /from-the-hook; uname -r"])
    spec["hooks"] = {**hooks, "startContainer": [guest]}
    name = pod.ctr.new_id()
    output = pod.run(spec, name)
    kernels = output.text.splitlines()
    assert len(kernels) == 2, output.error
    assert kernels[0] == kernels[1]
    lines = notes.read_text().splitlines()
    names = [line.split()[0] for line in lines[::2]]
    ran = dict(zip(names, map(json.loads, lines[1::2]), strict=True))
    assert list(ran) == [*kinds[1:], "poststop"]
    vmm = pod.ctr.pid(pod.id)
    assert process(vmm) is not None
    assert [state["status"] for state in ran.values()] == [
        *("creating", "creating", "creating", "running", "stopped")
    ]  # fmt: skip
    assert {state["id"] for state in ran.values()} == {name}
    assert ran["poststart"]["pid"] == vmm

    # One that fails before the container is made: no container, poststop runs.
    notes.unlink()
    spec["hooks"] = {
        "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no way >&2; exit 5"]}],
        "poststop": hooks["poststop"],
    }
    output = pod.run(spec)
    assert output.code != 0
    assert "createRuntime hook /bin/sh: exit status 5: no way" in output.error
    assert notes.read_text().startswith("poststop")
