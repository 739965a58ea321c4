"""Runs a container's OCI hooks on the host.

``prestart``, ``createRuntime`` and ``createContainer`` run when the VM is there and before
the container is made in it, ``poststart`` after its process was started, ``poststop`` after
it is gone; ``startContainer`` is the guest's. The process that stands for the container is
the VMM, which is in the pod's network namespace; ``createContainer`` hooks run in there.

Source: OCI runtime-spec config.md "POSIX-platform Hooks", runtime.md "Lifecycle".
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import trio

from shim.errors import DeadlineExceeded, Internal, InvalidArgument, KatapyError
from shim.log import Log

DEFAULT_TIMEOUT_S = 60.0
"""For a hook that names none, so that none can keep a container forever."""
_OUTPUT_SHOWN = 1000

Kind = Literal["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
Status = Literal["creating", "running", "stopped"]

BEFORE_CREATE: tuple[Kind, ...] = ("prestart", "createRuntime", "createContainer")


class Hooks:
    """The host's hooks of one container.

    Args:
        spec: its OCI spec, from :func:`shim.oci.spec.load_spec`.
        container_id: its id.
        bundle: its bundle directory.
        pid: the process that stands for it on the host.
        log: takes what hooks that may fail say.

    Raises:
        InvalidArgument: a hook's path is not absolute.
    """

    def __init__(
        self, spec: Mapping[str, Any], *, container_id: str, bundle: str, pid: int, log: Log
    ) -> None:
        self._hooks: Mapping[str, Sequence[Mapping[str, Any]]] = spec.get("hooks", {})
        self._state = {
            "ociVersion": spec.get("ociVersion", "1.0.2"),
            "id": container_id,
            "bundle": bundle,
            "annotations": spec.get("annotations", {}),
        }
        self._pid = pid
        self._log = log
        for kind, hooks in self._hooks.items():
            for hook in hooks:
                if not hook.get("path", "").startswith("/"):
                    raise InvalidArgument(f"{kind} hook {hook.get('path')!r}: no absolute path")

    async def before_create(self) -> None:
        """Run the hooks that come before the container is made.

        Raises:
            Internal: one failed, or could not be started.
            DeadlineExceeded: one took longer than its timeout.
        """
        for kind in BEFORE_CREATE:
            for hook in self._hooks.get(kind, ()):
                await self._run(kind, hook, "creating")

    async def after_start(self) -> None:
        """Run the ``poststart`` hooks; failures are logged."""
        await self._run_all("poststart", "running")

    async def after_stop(self) -> None:
        """Run the ``poststop`` hooks; failures are logged."""
        await self._run_all("poststop", "stopped")

    @property
    def stop_timeout(self) -> float:
        """Seconds :meth:`after_stop` may take."""
        return sum(map(_timeout, self._hooks.get("poststop", ()))) + 1.0

    def __contains__(self, kind: Kind) -> bool:
        return bool(self._hooks.get(kind))

    async def _run_all(self, kind: Kind, status: Status) -> None:
        for hook in self._hooks.get(kind, ()):
            try:
                await self._run(kind, hook, status)
            except KatapyError as err:
                self._log.warning(str(err))

    async def _run(self, kind: Kind, hook: Mapping[str, Any], status: Status) -> None:
        path = hook["path"]
        argv = list(hook.get("args", ())) or [path]
        start = partial(trio.run_process, argv, executable=path)
        if kind == "createContainer":
            start = partial(
                trio.run_process,
                ["nsenter", f"--net=/proc/{self._pid}/ns/net", "--", path, *argv[1:]],
            )
        state = {**self._state, "status": status}
        if status != "stopped":
            state["pid"] = self._pid
        environment = dict(item.partition("=")[::2] for item in hook.get("env", ()))
        done: subprocess.CompletedProcess[bytes] | None = None
        with trio.move_on_after(_timeout(hook)) as scope:
            try:
                done = await start(
                    stdin=json.dumps(state).encode(),
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=environment,
                    deliver_cancel=_kill,
                )
            except OSError as error:
                raise Internal(f"{kind} hook {path}: {error.strerror}") from error
        if done is None:
            assert scope.cancelled_caught
            raise DeadlineExceeded(f"{kind} hook {path} took longer than {_timeout(hook):g} s")
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise Internal(
                f"{kind} hook {path}: exit status {done.returncode}: {said[-_OUTPUT_SHOWN:]}"
            )


def _timeout(hook: Mapping[str, Any]) -> float:
    return float(hook.get("timeout", 0)) or DEFAULT_TIMEOUT_S


async def _kill(process: trio.Process) -> None:
    process.kill()
