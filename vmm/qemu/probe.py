"""What a QEMU binary is and has: asked once over QMP, then read from a cache.

Everything that depends on the version is decided from the answer, never from the
version number alone where QEMU can be asked. Standard library only; blocking.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmm.arch import MACHINES, Architecture
from vmm.errors import InvalidConfig
from vmm.qemu.qmp_codec import (
    Failure,
    Greeting,
    QmpDecoder,
    QmpProtocolError,
    Reply,
    encode_command,
)

_TIMEOUT = 20
_CACHE_FORMAT = 6
_MINIMUM = (7, 2, 0)
_DEVICES = (
    "pvpanic-pci",
    "vhost-user-fs-pci",
    "vhost-user-vsock-pci",
    "vhost-vsock-pci",
    "vfio-pci",
    "vhost-user-blk-pci",
    "vhost-user-blk-ccw",
    "vhost-user-fs-ccw",
    "vhost-vsock-ccw",
    "virtio-9p-ccw",
    "virtio-9p-pci",
    "virtio-mem-pci",
    "virtio-pmem-pci",
)
_NEEDED_ANSWERS = (
    "qmp_capabilities",
    "query-command-line-options",
    "query-machines",
    "query-qmp-schema",
)
# One device type at a time: asking for all would load every module there is, and one
# from another build ends QEMU.
_QUESTIONS: tuple[tuple[str, dict[str, Any] | None, str], ...] = (
    *((name, None, name) for name in _NEEDED_ANSWERS),
    *(("device-list-properties", {"typename": name}, name) for name in _DEVICES),
    ("quit", None, "quit"),
)


@dataclass(frozen=True)
class QemuFeatures:
    """What one QEMU binary has.

    Args:
        version: major, minor, micro.
        package: the distribution's version text.
        machines: machine types of interest.
        devices: optional device types of interest.
        sandbox: built with seccomp.
        run_with_user: ``-run-with`` takes a user (older ones spell it ``-runas``).
        migrate_file: can migrate to ``file:`` (older ones need ``fd:``).
        reconnect_ms: client sockets take ``reconnect-ms`` (older ones ``reconnect``).
        mem_unplug_error: reports DIMM refusals as ``MEM_UNPLUG_ERROR`` as well.
        monitor_object: monitors are objects (older ones spell them ``-mon``).
    """

    version: tuple[int, int, int]
    package: str
    machines: tuple[str, ...]
    devices: tuple[str, ...]
    sandbox: bool
    run_with_user: bool
    migrate_file: bool
    reconnect_ms: bool
    mem_unplug_error: bool
    monitor_object: bool

    @property
    def version_text(self) -> str:
        """The version with dots."""
        return ".".join(map(str, self.version))


def find_binary(arch: Architecture, configured: str | Path = "") -> Path:
    """Return the QEMU program to use.

    Args:
        arch: the guest's architecture.
        configured: a path or a name to look up; empty takes the distribution's.

    Raises:
        InvalidConfig: there is none.
    """
    name = str(configured) or f"qemu-system-{arch.name}"
    found = shutil.which(name)
    if found is None:
        raise InvalidConfig(f"no QEMU program {name}; install qemu-system or configure its path")
    return Path(found).resolve()


def probe(binary: Path, cache_dir: Path | None = None) -> QemuFeatures:
    """Return what a QEMU binary has.

    Args:
        binary: the program.
        cache_dir: where answers are kept, by the program's size and time of change.

    Raises:
        InvalidConfig: it does not run, is not QEMU, or is too old.
    """
    try:
        status = binary.stat()
    except OSError as error:
        raise InvalidConfig(f"QEMU at {binary}: {error.strerror}") from error
    key = [_CACHE_FORMAT, str(binary), status.st_size, status.st_mtime_ns]
    file = None
    if cache_dir is not None:
        file = cache_dir / f"qemu-{status.st_size:x}-{status.st_mtime_ns:x}.json"
        if (cached := _read_cache(file, key)) is not None:
            return cached
    features = parse(_ask(binary), str(binary))
    if file is not None:
        _write_cache(file, {"key": key, "features": asdict(features)})
    return features


def parse(output: bytes, source: str = "QEMU") -> QemuFeatures:
    """Return the features that a recorded QMP session shows.

    Args:
        output: everything QEMU sent in answer to the questions, in order.
        source: names the binary in errors.

    Raises:
        InvalidConfig: it is not such a session, or the version is too old.
    """
    try:
        messages = QmpDecoder().feed(output)
    except QmpProtocolError as error:
        raise InvalidConfig(f"{source} does not speak QMP: {error}") from error
    greeting = next((m for m in messages if isinstance(m, Greeting)), None)
    replies = {m.id: m.value for m in messages if isinstance(m, Reply)}
    if greeting is None or not replies.keys() >= set(_NEEDED_ANSWERS):
        refused = [m.description for m in messages if isinstance(m, Failure)]
        raise InvalidConfig(f"{source} did not answer as QEMU does {refused}")
    if greeting.version < _MINIMUM:
        raise InvalidConfig(f"{source}: QEMU 7.2 or later is needed, not {greeting.version}")
    options = {entry["option"] for entry in replies["query-command-line-options"]}
    machines = {
        name
        for machine in replies["query-machines"]
        for name in (machine["name"], machine.get("alias"))
    }
    schema = replies["query-qmp-schema"]
    names = {entry["name"] for entry in schema}
    members = {m.get("name") for entry in schema for m in entry.get("members", ())}
    return QemuFeatures(
        version=greeting.version,
        package=greeting.package,
        machines=tuple(name for name in MACHINES if name in machines),
        devices=tuple(name for name in _DEVICES if name in replies),
        sandbox="sandbox" in options,
        # The one thing QEMU can't be asked: it lists no parameters of this option.
        run_with_user="run-with" in options and greeting.version >= (9, 1, 0),
        migrate_file=_has_file_transport(schema),
        reconnect_ms="reconnect-ms" in members,
        mem_unplug_error="MEM_UNPLUG_ERROR" in names,
        monitor_object=any("monitor-qmp" in entry.get("values", ()) for entry in schema),
    )


def _has_file_transport(schema: list[dict[str, Any]]) -> bool:
    """Whether ``migrate`` knows ``file:``: the one enumeration with exec, fd and rdma."""
    for entry in schema:
        values = set(entry.get("values", ()))
        if entry.get("meta-type") == "enum" and {"exec", "rdma", "socket"} <= values:
            return "file" in values
    return False


def _ask(binary: Path) -> bytes:
    script = b"".join(encode_command(name, args, key) for name, args, key in _QUESTIONS)
    argv = [str(binary), "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    # Into a file, which takes all at once: QEMU throws away at its end what a pipe did not
    # take, and a busy host empties a pipe of 64 KiB too late for an answer of 300.
    answers = os.fdopen(os.memfd_create("qmp"), "w+b")
    try:
        done = subprocess.run(
            [*argv, "-qmp", "stdio"],
            input=script,
            stdout=answers,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            check=False,
        )
        answers.seek(0)
        output = answers.read()
    except OSError as error:
        raise InvalidConfig(f"can't run {binary}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise InvalidConfig(f"{binary} did not answer within {_TIMEOUT} s") from error
    finally:
        answers.close()
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise InvalidConfig(f"{binary} failed with exit code {done.returncode}: {said}")
    return output


def _read_cache(file: Path, key: list[Any]) -> QemuFeatures | None:
    try:
        stored = json.loads(file.read_bytes())
        if stored["key"] != key:
            return None
        values = stored["features"]
        for name in ("version", "machines", "devices"):
            values[name] = tuple(values[name])
        return QemuFeatures(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(file: Path, value: dict[str, Any]) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value))
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)  # only a cache
