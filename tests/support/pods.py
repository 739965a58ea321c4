"""Pods through CRI, described as briefly as tests want to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.lib.busybox import IMAGE_NAME
from deploy.lib.containerd import Daemon
from protos.cri import runtime_pb2 as cri
from protos.cri import sandbox_pb2
from tests.support.cri_client import CriClient, CriError
from tests.support.node_network import NetworkNamespace
from tests.support.waiting import eventually
from tests.support.websocket import Stream

EXEC_TIMEOUT = 30


class Kubelet:
    """Makes pods on one daemon, as a node's kubelet would.

    Params: ``handler`` is the runtime handler of its pods.
    """

    def __init__(
        self,
        daemon: Daemon,
        client: CriClient,
        network: NetworkNamespace,
        logs: Path,
        token: str,
        handler: str,
    ) -> None:
        self.daemon = daemon
        self.client = client
        self.network = network
        self.logs = logs
        self.token = token
        self.handler = handler
        self._numbers = itertools.count(1)

    def pod(self, name: str = "pod", *, handler: str = "", **config: Any) -> Pod:
        """Run a pod sandbox.

        Params: ``config`` are fields of PodSandboxConfig.
        """
        number = next(self._numbers)
        full = f"{self.token}-{name}-{number}"
        log_dir = self.logs / full
        log_dir.mkdir(parents=True)
        settings = sandbox_pb2.PodSandboxConfig(
            **{
                "metadata": {"name": full, "uid": f"uid-{full}", "namespace": "tests"},
                "hostname": name,
                "log_directory": str(log_dir),
                # Without it CRI puts the pod into a systemd-like parent of no host.
                **config,
            }
        )
        if not settings.linux.cgroup_parent:
            settings.linux.cgroup_parent = f"/{self.token}"
        answer = self.client.call(
            "RunPodSandbox", config=settings, runtime_handler=handler or self.handler
        )
        return Pod(self, answer.pod_sandbox_id, settings)

    def remove_all(self) -> None:
        """Stop and remove every pod there is."""
        errors = []
        for item in self.client.call("ListPodSandbox").items:
            try:
                self.client.call("StopPodSandbox", pod_sandbox_id=item.id)
                self.client.call("RemovePodSandbox", pod_sandbox_id=item.id)
            except CriError as error:  # the others are to go nevertheless
                errors.append(error)
        if errors:
            raise errors[0]


class Pod:
    """A pod sandbox."""

    def __init__(
        self, kubelet: Kubelet, sandbox_id: str, config: sandbox_pb2.PodSandboxConfig
    ) -> None:
        self.kubelet = kubelet
        self.id = sandbox_id
        self.config = config

    def status(self, *, verbose: bool = False) -> cri.PodSandboxStatusResponse:
        """What CRI knows of it."""
        answer = self.kubelet.client.call(
            "PodSandboxStatus", pod_sandbox_id=self.id, verbose=verbose
        )
        assert isinstance(answer, cri.PodSandboxStatusResponse)
        return answer

    @property
    def ip(self) -> str:
        """The address its network gave it."""
        return self.status().status.network.ip

    @property
    def info(self) -> dict[str, Any]:
        """The runtime's own words about it."""
        found: dict[str, Any] = json.loads(self.status(verbose=True).info["info"])
        return found

    def container(self, name: str, *words: str, start: bool = True, **config: Any) -> Member:
        """Create a container of the busybox image, and start it.

        Params: ``words`` are its command; ``config`` are fields of ContainerConfig.
        """
        settings = cri.ContainerConfig(
            **{
                "metadata": {"name": name},
                "image": {"image": IMAGE_NAME},
                "command": list(words),
                "log_path": f"{name}.log",
                **config,
            }
        )
        answer = self.kubelet.client.call(
            "CreateContainer",
            pod_sandbox_id=self.id,
            config=settings,
            sandbox_config=self.config,
        )
        member = Member(self, answer.container_id, settings)
        if start:
            member.start()
        return member

    def port_forward(self, port: int, *, timeout: float = 30) -> Stream:
        """A connection to a port of it; its data is on channel 0, after the port's number."""
        answer = self.kubelet.client.call("PortForward", pod_sandbox_id=self.id, port=[port])
        url = f"{answer.url}?port={port}"  # where a WebSocket client names its ports
        return Stream(url, self.kubelet.network, timeout=timeout)

    def stop(self) -> None:
        """StopPodSandbox."""
        self.kubelet.client.call("StopPodSandbox", pod_sandbox_id=self.id)

    def remove(self) -> None:
        """Stop and remove it."""
        self.stop()
        self.kubelet.client.call("RemovePodSandbox", pod_sandbox_id=self.id)


class Member:
    """A container of a pod."""

    def __init__(self, pod: Pod, container_id: str, config: cri.ContainerConfig) -> None:
        self.pod = pod
        self.id = container_id
        self.config = config
        self._client = pod.kubelet.client

    def start(self) -> None:
        """StartContainer."""
        self._client.call("StartContainer", container_id=self.id)

    def stop(self, grace: int = 0) -> None:
        """StopContainer, with seconds of grace."""
        self._client.call("StopContainer", container_id=self.id, timeout=grace)

    def remove(self) -> None:
        """RemoveContainer."""
        self._client.call("RemoveContainer", container_id=self.id)

    def status(self) -> cri.ContainerStatus:
        """What CRI knows of it."""
        answer = self._client.call("ContainerStatus", container_id=self.id)
        assert isinstance(answer, cri.ContainerStatusResponse)
        return answer.status

    @property
    def pid(self) -> int:
        """The host process that stands for it."""
        answer = self._client.call("ContainerStatus", container_id=self.id, verbose=True)
        return int(json.loads(answer.info["info"])["pid"])

    def wait_exit(self, *, timeout: float = 30) -> cri.ContainerStatus:
        """Wait until it has exited."""

        def exited() -> cri.ContainerStatus | None:
            status = self.status()
            return status if status.state == cri.CONTAINER_EXITED else None

        status = eventually(exited, f"exit of {self.config.metadata.name}", timeout=timeout)
        assert status is not None
        return status

    def try_exec(self, *words: str, timeout: int = EXEC_TIMEOUT) -> cri.ExecSyncResponse:
        """ExecSync, whatever its exit code; ``timeout`` in seconds."""
        answer = self._client.call(
            "ExecSync", container_id=self.id, cmd=words, timeout=timeout, timeout_s=timeout + 30
        )
        assert isinstance(answer, cri.ExecSyncResponse)
        return answer

    def sh(self, script: str) -> str:
        """What a shell script in it prints; it must succeed."""
        answer = self.try_exec("sh", "-ec", script)
        text = f"{script!r}: {answer.exit_code}, {answer.stdout!r}, {answer.stderr!r}"
        assert answer.exit_code == 0, text
        return answer.stdout.decode().rstrip("\n")

    def exec(
        self, words: Sequence[str], *, tty: bool = False, stdin: bool = False, timeout: float = 60
    ) -> Stream:
        """A streamed exec."""
        answer = self._client.call(
            "Exec",
            container_id=self.id,
            cmd=words,
            tty=tty,
            stdin=stdin,
            stdout=True,
            stderr=not tty,
        )
        return Stream(answer.url, self.pod.kubelet.network, timeout=timeout)

    def attach(self, *, stdin: bool = False, tty: bool = False, timeout: float = 60) -> Stream:
        """A streamed attach."""
        answer = self._client.call(
            "Attach", container_id=self.id, stdin=stdin, tty=tty, stdout=True, stderr=not tty
        )
        return Stream(answer.url, self.pod.kubelet.network, timeout=timeout)

    @property
    def log(self) -> list[tuple[str, str]]:
        """Its log so far: stream and text of each line (format: docs of kubelet's CRI logs)."""
        path = Path(self.pod.config.log_directory) / self.config.log_path
        lines = path.read_text().splitlines() if path.exists() else []
        words = (line.split(" ", 3) for line in lines)
        return [(stream, text) for _time, stream, _tag, text in words]

    def wait_log(self, text: str, *, stream: str = "stdout", timeout: float = 30) -> None:
        """Wait until a line is in its log."""
        eventually(lambda: (stream, text) in self.log, f"{text!r} in the log", timeout=timeout)


def linux(
    *,
    pid: int = sandbox_pb2.POD,
    ipc: int = sandbox_pb2.POD,
    network: int = sandbox_pb2.POD,
    target: str = "",
    resources: Mapping[str, Any] | None = None,
    **security: Any,
) -> dict[str, Any]:
    """The ``linux`` field of a container or pod: namespaces, limits, security context."""
    options = {"pid": pid, "ipc": ipc, "network": network, "target_id": target}
    result: dict[str, Any] = {"security_context": {"namespace_options": options, **security}}
    if resources is not None:
        result["resources"] = dict(resources)
    return result
