"""containerd's own client as the tests' user: every call has a deadline."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.lib.busybox import IMAGE_NAME
from deploy.lib.containerd import Daemon

RUN_TIMEOUT = 90.0
"""Seconds for a call that starts a VM without hardware virtualization on a busy host."""

CALL_TIMEOUT = 30.0

_ADVICE = re.compile(rb'^time="[^"]*" level=warning msg="DEPRECATION: .*\n', re.MULTILINE)
"""What ctr of containerd 2.2 and later says of a host with cgroup v1, whatever it is asked."""


@dataclass(frozen=True)
class Output:
    """What a finished command gave."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without the last line's end."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def error(self) -> str:
        """Standard error as text."""
        return self.stderr.decode(errors="replace").strip()


class Ctr:
    """ctr in one namespace with one runtime.

    Params: ``runtime`` is a containerd runtime name.
    """

    def __init__(self, daemon: Daemon, namespace: str, runtime: str) -> None:
        self.daemon = daemon
        self.namespace = namespace
        self.runtime = runtime
        self._numbers = itertools.count(1)

    def new_id(self) -> str:
        """A container id not used before in this namespace."""
        return f"{self.namespace}-{next(self._numbers)}"

    def command(self, *words: str | Path) -> list[str]:
        """The argument vector of a ctr call."""
        return self.daemon.ctr_command(*words, namespace=self.namespace)

    def run_command(
        self, name: str, *words: str | Path, options: Sequence[str | Path] = ()
    ) -> list[str]:
        """The argument vector of ``ctr run``: ``options``, the busybox image, ``words``."""
        return self.command("run", "--runtime", self.runtime, *options, IMAGE_NAME, name, *words)

    def __call__(
        self, *words: str | Path, timeout: float = CALL_TIMEOUT, stdin: bytes = b""
    ) -> Output:
        """Run ctr to its end. Raises: AssertionError when its deadline passes."""
        return self.finish(self.command(*words), timeout=timeout, stdin=stdin)

    def run(
        self,
        *words: str | Path,
        name: str | None = None,
        options: Sequence[str | Path] = (),
        timeout: float = RUN_TIMEOUT,
        stdin: bytes = b"",
    ) -> Output:
        """Run a container in the foreground and remove it: ``ctr run --rm``."""
        argv = self.run_command(name or self.new_id(), *words, options=["--rm", *options])
        return self.finish(argv, timeout=timeout, stdin=stdin)

    def start(
        self,
        *words: str | Path,
        name: str | None = None,
        options: Sequence[str | Path] = (),
        timeout: float = RUN_TIMEOUT,
    ) -> str:
        """Start a container in the background and return its id: ``ctr run --detach``."""
        name = name or self.new_id()
        argv = self.run_command(name, *words, options=["--detach", *options])
        self.expect_ok(self.finish(argv, timeout=timeout), argv)
        return name

    def exec(
        self,
        container: str,
        *words: str,
        options: Sequence[str] = (),
        timeout: float = CALL_TIMEOUT,
        stdin: bytes = b"",
    ) -> Output:
        """Run a process in a running container and wait for it."""
        prefix = ("tasks", "exec", "--exec-id", self.new_id(), *options, container)
        return self(*prefix, *words, timeout=timeout, stdin=stdin)

    def ok(self, *words: str | Path, timeout: float = CALL_TIMEOUT) -> Output:
        """Like a call, and it must succeed."""
        output = self(*words, timeout=timeout)
        self.expect_ok(output, words)
        return output

    def status(self, container: str) -> str:
        """A task's status as ctr names it, such as RUNNING; empty when there is no task."""
        for line in self.ok("tasks", "list").text.splitlines()[1:]:
            name, _, status = line.split()
            if name == container:
                return status
        return ""

    def pid(self, container: str) -> int:
        """The pid that containerd has for a task. Raises: KeyError when there is no task."""
        for line in self.ok("tasks", "list").text.splitlines()[1:]:
            name, pid, _ = line.split()
            if name == container:
                return int(pid)
        raise KeyError(container)

    def remove(self, container: str) -> None:
        """Take a container away with its task and snapshot, whatever state it is in."""
        self("tasks", "delete", "--force", container)
        self("containers", "delete", container)

    def remove_all(self) -> None:
        """Take all containers of the namespace away."""
        for name in self.ok("containers", "list", "--quiet").text.split():
            self.remove(name)

    @staticmethod
    def finish(argv: Sequence[str], *, timeout: float, stdin: bytes = b"") -> Output:
        """Run an argument vector to its end. Raises: AssertionError past the deadline."""
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(
                f"{' '.join(argv)}: not done after {timeout:g} s; wrote {error.stdout!r} "
                f"and {error.stderr!r}"
            ) from None
        return Output(done.returncode, done.stdout, _ADVICE.sub(b"", done.stderr))

    @staticmethod
    def expect_ok(output: Output, words: Sequence[str | Path]) -> None:
        """Raises: AssertionError when the command failed, with what it wrote."""
        line = " ".join(str(word) for word in words)
        assert output.code == 0, f"{line}: exit code {output.code}\n{output.error}\n{output.text}"
