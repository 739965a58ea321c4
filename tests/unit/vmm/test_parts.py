"""The small pure parts."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import trio

from vmm import virtiofsd
from vmm.arch import architecture, host_architecture
from vmm.broadcast import Broadcast
from vmm.errors import InvalidConfig, Unsupported
from vmm.events import ExitCause
from vmm.qemu import accel, tsc
from vmm.qemu.exit import exit_reason
from vmm.sockets import listen
from vmm.vsock import open_vhost


@pytest.mark.parametrize(
    ("returncode", "shutdown", "panicked", "console", "cause"),
    [
        (0, "guest-shutdown", False, [], ExitCause.GUEST_SHUTDOWN),
        (0, "guest-reset", False, ["all is well"], ExitCause.GUEST_RESET),
        (
            0,
            "guest-reset",
            False,
            ["[ 1.0] Kernel panic - not syncing: x"],
            ExitCause.GUEST_PANIC,
        ),
        (0, "guest-panic", False, [], ExitCause.GUEST_PANIC),
        (0, "", True, [], ExitCause.GUEST_PANIC),
        (0, "host-qmp-quit", False, [], ExitCause.HOST_QUIT),
        (0, "host-signal", False, [], ExitCause.HOST_SIGNAL),
        (-9, "", False, [], ExitCause.HOST_SIGNAL),
        (1, "", False, [], ExitCause.VMM_ERROR),
        (None, "", False, [], ExitCause.UNKNOWN),
    ],
)
def test_exit_reasons(
    returncode: int | None,
    shutdown: str,
    panicked: bool,
    console: list[str],
    cause: ExitCause,
) -> None:
    reason = exit_reason(
        returncode=returncode,
        shutdown_cause=shutdown,
        panicked=panicked,
        stderr=["oops"],
        console=console,
    )
    assert reason.cause is cause
    assert "VMM said: oops" in str(reason)
    assert reason.signal == (signal.SIGKILL if returncode == -9 else None)


def test_a_panic_is_shown_rather_than_what_follows_it() -> None:
    console = ["before", "Kernel panic - not syncing: no init", *(f"trace {n}" for n in range(50))]
    reason = exit_reason(
        returncode=0, shutdown_cause="guest-reset", panicked=False, stderr=[], console=console
    )
    assert "Kernel panic - not syncing: no init" in str(reason)


async def test_broadcast() -> None:
    broadcast: Broadcast[int] = Broadcast()
    early = broadcast.subscribe(capacity=2)
    broadcast.publish(1)
    with broadcast.subscribe() as late:
        for number in (2, 3):
            broadcast.publish(number)
    broadcast.publish(4)
    broadcast.close()
    assert [item async for item in early] == [3, 4]
    assert early.dropped == 2
    with trio.move_on_after(0.05) as scope:
        assert [await anext(late), await anext(late)] == [2, 3]
        await anext(late)  # left before the end, so there is none
    assert scope.cancelled_caught
    assert [item async for item in broadcast.subscribe()] == []


def test_kvm_needs_the_cpu_flag(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu svm sse\n")
    assert accel._missing_cpu_flag(str(info)) == ""
    info.write_text("processor: 0\nflags\t\t: fpu sse\n")
    assert "neither vmx nor svm" in accel._missing_cpu_flag(str(info))


def test_accelerator_choice() -> None:
    found = accel.detect()
    assert accel.choose("auto", architecture()) is found
    assert accel.choose("tcg", architecture()).name == "tcg"
    if found.name == "kvm":
        assert accel.choose("kvm", architecture()) is found
    else:
        with pytest.raises(InvalidConfig, match="KVM is configured but does not work here"):
            accel.choose("kvm", architecture())


def test_another_architecture_is_emulated() -> None:
    other = "aarch64" if host_architecture() != "aarch64" else "x86_64"
    assert accel.choose("auto", architecture(other)).name == "tcg"
    with pytest.raises(InvalidConfig, match=f"can't run a {other} guest"):
        accel.choose("kvm", architecture(other))


def test_architectures_go_by_any_of_their_names() -> None:
    assert architecture("arm64") is architecture("aarch64")
    assert architecture("amd64") is architecture("x86_64")
    assert architecture().name == host_architecture()
    with pytest.raises(InvalidConfig, match="known are x86_64, aarch64"):
        architecture("pdp11")


def test_counter_rate(tmp_path: Path) -> None:
    first, second = tsc.host_tsc_khz(), tsc.host_tsc_khz()
    assert first == pytest.approx(second, rel=0.001)
    cached = tsc.host_tsc_khz(tmp_path)
    (file,) = tmp_path.iterdir()
    boot_id = file.read_text().split()[0]
    file.write_text(f"{boot_id} 1234")
    assert tsc.host_tsc_khz(tmp_path) == 1234
    file.write_text("another-boot 1234")
    assert tsc.host_tsc_khz(tmp_path) == pytest.approx(cached, rel=0.001)
    assert time.monotonic() > 0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)\nusing FUSE kernel interface", "c"),
        ("virtiofsd 1.13.2\n", "rust"),
        ("virtiofsd-rs 1.0.0\n", "rust"),
    ],
)
def test_virtiofsd_kinds(text: str, kind: str) -> None:
    assert virtiofsd.parse_version(text) == kind


def test_unknown_virtiofsd() -> None:
    with pytest.raises(InvalidConfig, match="'true"):
        virtiofsd.parse_version("true (GNU coreutils) 9.1")


def test_virtiofsd_commands() -> None:
    options = virtiofsd.ShareOptions(cache="never", xattr=False)
    build = virtiofsd.build_command
    rust = build(Path("/v"), "rust", 7, Path("/a,b"), options)
    assert "--fd=7" in rust
    assert "--shared-dir=/a,b" in rust
    assert "--cache=never" in rust
    assert "--xattr" not in rust
    c = build(Path("/v"), "c", 7, Path("/a,b"), options)
    assert "--fd=7" in c
    settings = [b for a, b in itertools.pairwise(c) if a == "-o"]
    assert {"source=/a\\,b", "cache=none", "no_xattr", "announce_submounts"} <= set(settings)


def test_arguments_for_virtiofsd_replace_ours_of_the_same_name() -> None:
    # As in Kata's configuration files.
    options = virtiofsd.ShareOptions(
        extra=("--thread-pool-size=4", "--announce-submounts", "--log-level=warn")
    )
    rust = virtiofsd.build_command(Path("/v"), "rust", 7, Path("/a"), options)
    assert [a for a in rust if a.startswith("--thread")] == ["--thread-pool-size=4"]
    assert rust.count("--announce-submounts") == 1
    assert rust[-1] == "--log-level=warn"
    c = virtiofsd.build_command(Path("/v"), "c", 7, Path("/a"), options)
    assert "--announce-submounts" not in c
    assert c[-2:] == ["--thread-pool-size=4", "--log-level=warn"]


def test_listening_sockets(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("stale")
    with listen(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.is_socket()
    with pytest.raises(InvalidConfig, match="over 107 bytes"):
        listen(tmp_path / ("x" * 107))
    with pytest.raises(InvalidConfig, match="can't listen"):
        listen(tmp_path / "missing" / "s")


def test_no_vhost_vsock() -> None:
    with pytest.raises(Unsupported, match="/nonexistent"):
        open_vhost("/nonexistent")
    if os.access("/dev/vhost-vsock", os.R_OK | os.W_OK):
        device = open_vhost()
        assert device.cid >= 3
        os.close(device.fd)
