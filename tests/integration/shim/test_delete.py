"""``delete`` as containerd executes it, with the shim alive, hung, and dead."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.containerd import task_v2_pb2
from shim.cleanup import process_table
from shim.ttrpc import framing, messages, status
from tests.integration.shim.conftest import Installation, end

SANDBOX = "io.kubernetes.cri.sandbox-id"
KIND = "io.kubernetes.cri.container-type"
SERVICE = "containerd.task.v2.Task"


def kill(pid: int) -> None:
    started = process_table.start_time(pid)
    assert started is not None
    assert process_table.kill([(pid, started)], 5) == []


def deleted(shim: Installation, name: str, *flags: str) -> task_v2_pb2.DeleteResponse:
    before = time.time()
    done = shim.delete(name, *flags)
    assert (done.returncode, done.stderr) == (0, b"")
    response = task_v2_pb2.DeleteResponse.FromString(done.stdout)
    assert before - 1 <= response.exited_at.seconds <= time.time() + 1
    return response


def test_dead_shim_takes_its_vm_socket_and_ledger_along(shim: Installation) -> None:
    path = shim.start("c1").stdout.decode().removeprefix("unix://")
    daemon = shim.daemon()
    vmm = process_table.start_time(daemon["vmm"])
    assert vmm is not None
    kill(daemon["pid"])
    assert process_table.is_alive(daemon["vmm"], vmm)
    response = deleted(shim, "c1")
    assert (response.pid, response.exit_status) == (daemon["vmm"], 137)
    assert not process_table.is_alive(daemon["vmm"], vmm)
    assert not os.path.exists(path)
    assert os.listdir(shim.state) == []
    again = deleted(shim, "c1")
    assert (again.pid, again.exit_status) == (0, 137)


def test_other_sandboxes_are_left_alone(shim: Installation) -> None:
    shim.start("c1")
    one = shim.daemon()
    other_path = shim.start("c2").stdout.decode().removeprefix("unix://")
    other = shim.daemon()
    vmm = process_table.start_time(other["vmm"])
    assert vmm is not None
    kill(one["pid"])
    deleted(shim, "c1")
    assert process_table.is_alive(other["vmm"], vmm)
    assert os.path.exists(other_path)
    assert os.listdir(shim.state / "default") == ["c2"]
    end(other["pid"])


def test_member_of_a_dead_pod_sweeps_the_pod(shim: Installation) -> None:
    shim.start("pod", annotations={SANDBOX: "pod", KIND: "sandbox"})
    daemon = shim.daemon()
    shim.start("c1", annotations={SANDBOX: "pod", KIND: "container"})
    kill(daemon["pid"])
    assert deleted(shim, "c1").pid == daemon["vmm"]
    assert os.listdir(shim.state) == []
    assert deleted(shim, "pod").exit_status == 137


def test_member_that_only_containerd_2_knows(shim: Installation) -> None:
    """After a daemon restart such a bundle holds no address, only a copy of the record."""
    path = shim.start("pod").stdout.decode()
    daemon = shim.daemon()
    bundle = shim.bundle("c1")
    (bundle / "sandbox").write_text("pod")
    (bundle / "bootstrap.json").write_text(f'{{"version":3,"address":"{path}"}}')
    kill(daemon["pid"])
    assert deleted(shim, "c1").pid == daemon["vmm"]
    assert not os.path.exists(path.removeprefix("unix://"))


def test_nothing_there_at_all(shim: Installation) -> None:
    shim.bundle("c1")
    assert deleted(shim, "c1").exit_status == 137
    (shim.bundle_path("c1") / "config.json").write_text("{io.kubernetes.cri.sandbox-id")
    assert deleted(shim, "c1").exit_status == 137
    assert "taking the container for its own sandbox" in shim.log("c1")


def test_unreadable_ledger_is_kept_and_told(shim: Installation) -> None:
    shim.bundle("c1")
    ledger = shim.state / "default" / "c1" / "ledger.json"
    ledger.parent.mkdir(parents=True)
    ledger.write_text("garbage")
    assert deleted(shim, "c1").exit_status == 137
    assert "is not a ledger" in shim.log("c1")
    ledger.unlink()


def test_shim_that_hangs_is_killed_for_its_own_sandbox(shim: Installation) -> None:
    shim.start("pod", annotations={SANDBOX: "pod", KIND: "sandbox"})
    daemon = shim.daemon()
    shim.start("c1", annotations={SANDBOX: "pod", KIND: "container"})
    started = process_table.start_time(daemon["pid"])
    assert started is not None
    os.kill(daemon["pid"], signal.SIGSTOP)
    deleted(shim, "c1")  # a member must not take the pod down
    assert process_table.is_alive(daemon["pid"], started)
    assert deleted(shim, "pod").pid == daemon["vmm"]
    assert not process_table.is_alive(daemon["pid"], started)
    assert process_table.start_time(daemon["vmm"]) is None
    assert os.listdir(shim.state) == []


class Peer:
    """A shim's socket that answers each method with what the test says."""

    def __init__(self, path: str, answers: dict[str, tuple[int, bytes]]) -> None:
        self.calls: list[str] = []
        self.requests: list[bytes] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            decoder = framing.FrameDecoder()
            with connection:
                while data := connection.recv(65536):
                    for stream, _kind, _flags, payload in decoder.feed(data):
                        assert payload is not None
                        request = messages.decode_request(payload)
                        assert request.service == SERVICE
                        assert request.timeout_ns > 0
                        self.calls.append(request.method)
                        self.requests.append(request.payload)
                        code, body = self._answers[request.method]
                        answer = messages.encode_response(code, "told so", body)
                        frame = framing.encode_frame(stream, framing.RESPONSE, 0, answer)
                        connection.sendall(frame)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def socket_path(shim: Installation) -> Iterator[str]:
    path = str(shim.root / "peer")
    bundle = shim.bundle("c1")
    (bundle / "address").write_text(f"unix://{path}")
    yield path
    Path(path).unlink(missing_ok=True)


def test_living_shim_deletes_the_container_itself(shim: Installation, socket_path: str) -> None:
    response = task_v2_pb2.DeleteResponse(pid=200, exit_status=9)
    response.exited_at.GetCurrentTime()
    answers = {
        "State": (status.OK, task_v2_pb2.StateResponse(id="c1").SerializeToString()),
        "Kill": (status.OK, b""),
        "Wait": (status.OK, task_v2_pb2.WaitResponse(exit_status=9).SerializeToString()),
        "Delete": (status.OK, response.SerializeToString()),
    }
    peer = Peer(socket_path, answers)
    assert deleted(shim, "c1") == response
    peer.close()
    assert peer.calls == ["State", "Kill", "Wait", "Delete"]
    kill_request = task_v2_pb2.KillRequest.FromString(peer.requests[1])
    assert (kill_request.id, kill_request.signal, kill_request.all) == ("c1", 9, True)


def test_living_shim_that_knows_the_container_no_more(shim: Installation, socket_path: str) -> None:
    peer = Peer(socket_path, {"State": (status.NOT_FOUND, b"")})
    response = deleted(shim, "c1")
    peer.close()
    assert (response.pid, response.exit_status) == (0, 137)
    assert peer.calls == ["State"]
    assert os.path.exists(socket_path)


def test_container_that_exited_before_the_kill(shim: Installation, socket_path: str) -> None:
    response = task_v2_pb2.DeleteResponse(pid=7)
    response.exited_at.GetCurrentTime()
    answers = {
        "State": (status.OK, b""),
        "Kill": (status.NOT_FOUND, b""),
        "Wait": (status.OK, b""),
        "Delete": (status.OK, response.SerializeToString()),
    }
    peer = Peer(socket_path, answers)
    assert deleted(shim, "c1") == response
    peer.close()


def test_refusal_of_a_living_shim_is_logged(shim: Installation, socket_path: str) -> None:
    peer = Peer(socket_path, {"State": (status.INTERNAL, b"")})
    assert deleted(shim, "c1").exit_status == 137
    peer.close()
    assert "the shim did not delete the container: told so" in shim.log("c1")
