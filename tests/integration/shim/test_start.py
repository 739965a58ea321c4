"""``start`` as containerd executes it: a real process, real pipes, a real fork."""

from __future__ import annotations

import json
import os
import pwd
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from protos.containerd import bootstrap_pb2, introspection_pb2, runc_options_pb2
from shim.cleanup import process_table
from tests.integration.shim.conftest import Installation, end
from tests.support.waiting import eventually

SANDBOX = "io.kubernetes.cri.sandbox-id"
KIND = "io.kubernetes.cri.container-type"


def path_of(output: bytes) -> str:
    text = output.decode()
    assert text.startswith("unix:///")
    assert text == text.strip()
    return text.removeprefix("unix://")


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_address_is_printed_and_answers_at_once(shim: Installation) -> None:
    done = shim.start("c1")
    assert done.returncode == 0
    path = path_of(done.stdout)
    assert connects(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert (shim.bundle_path("c1") / "address").read_bytes() == done.stdout
    assert sorted(os.listdir(shim.bundle_path("c1"))) == ["address", "config.json", "log"]
    daemon = shim.daemon()
    end(daemon["pid"])
    eventually(lambda: not os.path.exists(path), "the socket goes", timeout=5)
    assert os.listdir(shim.state) == []


def test_context_and_process_of_the_daemon(shim: Installation) -> None:
    score = int(Path("/proc/self/oom_score_adj").read_text())
    done = shim.start("c1", "-debug")
    daemon = shim.daemon()
    pid = daemon["pid"]
    assert daemon["namespace"] == "default"
    assert (daemon["id"], daemon["group_id"]) == ("c1", "c1")
    assert daemon["bundle"] == str(shim.bundle_path("c1"))
    assert daemon["grpc_address"] == shim.grpc
    assert daemon["ttrpc_address"] == "/run/c.sock.ttrpc"
    assert daemon["publish_binary"] == "/bin/c"
    assert daemon["debug"] is True
    assert daemon["options"] is None
    assert daemon["socket_path"] == path_of(done.stdout)
    assert daemon["log_fifo"] == str(shim.bundle_path("c1") / "log")
    assert list(daemon["stamps"]) == ["stub", "listening", "forked", "imported"]
    assert list(daemon["stamps"].values()) == sorted(daemon["stamps"].values())
    assert daemon["path"][-1] == "/third/party"
    assert daemon["heavy"] == []
    assert daemon["cwd"] == "/"
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == str(min(score + 1, 1000))
    names = set(daemon["environ"])
    assert {"PATH", "KATAPY_STATE_DIR"} <= names
    assert not names & {"NOTIFY_SOCKET", "GOMAXPROCS", "TTRPC_ADDRESS", "XDG_RUNTIME_DIR"}
    fds = daemon["fds"]
    assert [fds.pop(n) for n in "012"] == ["/dev/null"] * 3
    assert fds.pop("3").startswith("socket:")
    log, lock = daemon["log_fifo"], str(shim.state / "default" / "c1")
    assert sorted(fds.values()) == sorted([log, lock])


def has_core_scheduling() -> bool:
    """Whether this kernel and processor group threads, tried in a child of its own group."""
    script = (
        "import os; from shim import syscalls as s; os.setsid();"
        "s.prctl(s.PR_SCHED_CORE, s.PR_SCHED_CORE_CREATE, 0, s.PIDTYPE_PROCESS_GROUP)"
    )
    tried = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.DEVNULL, timeout=30, check=False
    )
    return tried.returncode == 0


def test_core_scheduling_is_had_or_refused(shim: Installation) -> None:
    shim.extra["SCHED_CORE"] = "1"
    done = shim.start("c1")
    if has_core_scheduling():
        assert done.returncode == 0, done.stdout
        assert shim.daemon()["group_id"] == "c1"
    else:
        assert done.returncode == 1
        assert b"SCHED_CORE is set, but core scheduling is not to be had" in done.stdout
        assert process_table.find_by_marker(str(shim.launcher)) == []


def test_bootstrap_params_get_a_version_3_answer(shim: Installation) -> None:
    own = str(shim.root / "own")
    params = bootstrap_pb2.BootstrapParams(
        instance_id="c1",
        namespace="default",
        containerd_ttrpc_address="/t",
        containerd_grpc_address="/g",
        containerd_binary="/c",
        log_level=bootstrap_pb2.DEBUG,
        socket_dir=own,
    )
    extension = params.extensions.add()
    extension.value.type_url = "runtimeoptions.v1.Options"
    extension.value.value = b"\x12\x02/x"
    done = shim.start("c1", stdin=params.SerializeToString())
    answer = json.loads(done.stdout)
    assert (answer["version"], answer["protocol"]) == (3, "ttrpc")
    path = answer["address"].removeprefix("unix://")
    assert os.path.dirname(path) == own
    assert connects(path)
    assert (shim.bundle_path("c1") / "address").read_text() == f"unix://{path}"
    daemon = shim.daemon()
    got = [daemon[n] for n in ("ttrpc_address", "grpc_address", "publish_binary", "debug")]
    assert got == ["/t", "/g", "/c", True]
    assert daemon["options"] == ["runtimeoptions.v1.Options", "12022f78"]


def test_members_join_the_shim_of_their_pod(shim: Installation) -> None:
    sandbox = shim.start("pod", annotations={SANDBOX: "pod", KIND: "sandbox"})
    daemon = shim.daemon()
    assert daemon["group_id"] == "pod"
    member = shim.start("c1", annotations={SANDBOX: "pod", KIND: "container"})
    assert member.stdout == sandbox.stdout
    assert (shim.bundle_path("c1") / "address").read_bytes() == sandbox.stdout
    assert len(process_table.find_by_marker(str(shim.launcher))) == 1
    end(daemon["pid"])
    late = shim.start("c2", annotations={SANDBOX: "pod", KIND: "container"})
    assert late.returncode == 1
    assert b"the VM of its pod pod is gone" in late.stdout
    assert not (shim.bundle_path("c2") / "address").exists()


def test_first_of_a_runc_group_becomes_its_shim(shim: Installation) -> None:
    group = "io.containerd.runc.v2.group"
    first = shim.start("c1", annotations={group: "g"})
    assert shim.daemon()["group_id"] == "g"
    assert shim.start("c2", annotations={group: "g"}).stdout == first.stdout


def test_sandbox_without_config_json(shim: Installation) -> None:
    bundle = shim.bundle("pod")
    (bundle / "config.json").unlink()
    done = subprocess.run(
        shim.command("start", "pod"), cwd=bundle, env=shim.environment(), stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL, check=True, timeout=30,
    )  # fmt: skip
    assert connects(path_of(done.stdout))
    assert shim.daemon()["group_id"] == "pod"


def test_racing_starts_of_one_pod_end_with_one_shim(shim: Installation) -> None:
    outputs: list[bytes] = []

    def run(name: str) -> None:
        outputs.append(shim.start(name, annotations={SANDBOX: "pod"}).stdout)

    threads = [threading.Thread(target=run, args=(f"c{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 4
    assert len({path_of(output) for output in outputs}) == 1
    shim.daemon()
    assert len(process_table.find_by_marker(str(shim.launcher))) == 1


def test_socket_of_a_dead_shim_is_replaced(shim: Installation) -> None:
    first = shim.start("c1")
    daemon = shim.daemon()
    process_table.kill([(daemon["pid"], process_table.start_time(daemon["pid"]) or 0)], 5)
    assert os.path.exists(path_of(first.stdout))
    again = shim.start("c1")
    assert again.stdout == first.stdout
    assert connects(path_of(again.stdout))


def test_failure_of_the_daemon_is_logged_and_leaves_no_socket(shim: Installation) -> None:
    shim.extra["KATAPY_TEST_FAIL"] = "1"
    done = shim.start("c1")
    path = path_of(done.stdout)
    eventually(lambda: not os.path.exists(path), "the socket goes", timeout=20)
    log = shim.log("c1")
    assert 'level=error msg="the shim failed: RuntimeError' in log
    assert "told to fail" in log
    assert "namespace=default id=c1" in log


@pytest.mark.parametrize(
    ("flags", "stdin", "config", "text"),
    [
        (["-bogus"], b"", "{}", "unknown flag -bogus"),
        ([], b"\xff\xff", "{}", "standard input is no runtime options message"),
        ([], b"\x00" * (2 << 20), "{}", "standard input holds more than"),
        ([], b"", '{"x":"io.kubernetes.cri.sandbox-id"', "config.json of c1 is malformed"),
        ([], b"", '{"annotations":{"io.kubernetes.cri.sandbox-id":"a/b"}}', "cannot name a"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(
    shim: Installation, flags: list[str], stdin: bytes, config: str, text: str
) -> None:
    bundle = shim.bundle("c1")
    (bundle / "config.json").write_text(config)
    done = subprocess.run(
        shim.command("start", "c1", *flags), cwd=bundle, env=shim.environment(), input=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert text in done.stdout.decode()
    assert done.stdout.count(b"\n") == 1
    assert process_table.find_by_marker(str(shim.launcher)) == []
    assert sorted(os.listdir(bundle)) == ["config.json", "log"]


def test_unusable_shim_cgroup_fails_the_start_and_leaves_no_socket(shim: Installation) -> None:
    options = runc_options_pb2.Options(shim_cgroup="/katapy/does/not/exist")
    stdin = b"\x0a\x1acontainerd.runc.v1.Options\x12"
    value = options.SerializeToString()
    done = shim.start("c1", stdin=stdin + bytes([len(value)]) + value)
    assert done.returncode == 1
    assert b"shim_cgroup '/katapy/does/not/exist' is not below" in done.stdout
    path = (shim.bundle_path("c1") / "address").read_text().removeprefix("unix://")
    assert not os.path.exists(path)


def test_stray_bytes_on_stderr_go_to_the_log(shim: Installation) -> None:
    daemon = shim.source / "shim/daemon.py"
    daemon.write_text(daemon.read_text() + "\nos.write(2, b'stray')\n")
    done = shim.start("c1")
    assert connects(path_of(done.stdout))
    shim.daemon()


def test_inherited_descriptors_and_warnings_settings_do_not_get_in(shim: Installation) -> None:
    bundle = shim.bundle("c1")
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    done = subprocess.run(
        shim.command("start", "c1"), cwd=bundle, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, pass_fds=[write_fd], timeout=30, check=True,
        env=shim.environment() | {"PYTHONWARNINGS": "always", "PYTHONPATH": "/nowhere",
                                  "PYTHONVERBOSE": "1", "PYTHONDEVMODE": "1"},
    )  # fmt: skip
    os.close(write_fd)
    assert connects(path_of(done.stdout))
    shim.daemon()
    with os.fdopen(read_fd, "rb") as pipe:
        assert pipe.read() == b""  # the daemon does not hold the other end open


def test_version_and_info_without_root_and_anywhere(shim: Installation) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    for directory in [shim.root, *shim.root.parents]:
        directory.chmod(directory.stat().st_mode | 0o011)

    def ask(flag: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(shim.launcher), flag], input=stdin, capture_output=True, cwd="/",
            user=nobody, env={}, timeout=30, check=False,
        )  # fmt: skip

    assert ask("-v").stdout == b"containerd-shim-katapy-v2: 0.1.0\n"
    answer = ask("-info")
    assert (answer.returncode, answer.stderr) == (0, b"")
    info = introspection_pb2.RuntimeInfo.FromString(answer.stdout)
    assert info.name == "io.containerd.katapy.v2"
    assert info.version.version == "0.1.0"
    assert not info.HasField("options")
    kind = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    assert info.features.type_url == kind
    features = json.loads(info.features.value)
    assert features["linux"]["cgroup"]["v2"] is True
    allowed = info.annotations["containerd.io/runtime-allow-mounts"]
    assert allowed == "format/*,mkdir/*,erofs"
    echoed = introspection_pb2.RuntimeInfo.FromString(ask("-info", b"\x0a\x03a.b").stdout)
    assert echoed.options.type_url == "a.b"
    bad = ask("-info", b"\xff")
    assert bad.returncode == 1
    assert b"no runtime options message" in bad.stdout


def test_start_imports_nothing_that_takes_long(shim: Installation) -> None:
    """Before the address is out, only what the start path was built to need is loaded."""
    stub = shim.source / "shim/stub.py"
    marker = "        os._exit(0)"
    text = stub.read_text()
    assert text.count(marker) == 1
    listing = f"        _print(' '.join(['', *sys.modules]).encode())\n{marker}"
    stub.write_text(text.replace(marker, listing))
    annotations = {SANDBOX: "c1", KIND: "sandbox"}
    value = runc_options_pb2.Options(systemd_cgroup=True).SerializeToString()
    stdin = b"\x0a\x1acontainerd.runc.v1.Options\x12" + bytes([len(value)]) + value
    loaded = set(shim.start("c1", stdin=stdin, annotations=annotations).stdout.decode().split()[1:])
    assert "shim.stub" in loaded
    slow = {"argparse", "asyncio", "ctypes", "dataclasses", "enum", "hashlib", "json", "logging"}
    slow |= {"pathlib", "re", "select", "signal", "site", "socket", "subprocess", "tempfile"}
    slow |= {"threading", "typing", "trio", "google.protobuf", "contextlib", "shim.cleanup.ledger"}
    assert loaded & slow == set()
    shim.daemon()


def test_file_limit_below_the_descriptors_in_use_is_no_obstacle(shim: Installation) -> None:
    bundle = shim.bundle("c1")
    done = subprocess.run(
        shim.command("start", "c1"), cwd=bundle, env=shim.environment(), stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL, timeout=30, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )  # fmt: skip
    assert connects(path_of(done.stdout))
    os.kill(shim.daemon()["pid"], signal.SIGTERM)
