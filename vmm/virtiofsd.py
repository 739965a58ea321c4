"""virtiofsd, which serves a host directory to a guest's virtio-fs.

Two programs go by that name: the C one that QEMU up to 7.2 brings along, and the Rust
one that came after it. They take different options; ``--version`` tells them apart.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import trio

from vmm.errors import InvalidConfig
from vmm.helper import run_helper
from vmm.sockets import listen
from vmm.spawn import spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmm.hypervisor import Recorder
    from vmm.process import Process

PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "virtiofsd")
"""Where it is looked for: Debian 13's package, QEMU's own up to 7.2, the ``PATH``."""

_VERSION_TIMEOUT = 10

Kind = Literal["c", "rust"]


@dataclass(frozen=True)
class ShareOptions:
    """How a directory is shared.

    Args:
        cache: what the guest may keep: ``auto`` trusts for a second, ``always`` for good,
            ``never`` asks each time.
        xattr: pass extended attributes on; file capabilities need them.
        sandbox: how the daemon locks itself into the directory.
        threads: worker threads; 0 serves in the queue's own thread.
        extra: further arguments; one of them replaces ours of the same name.
    """

    cache: Literal["auto", "always", "never"] = "auto"
    xattr: bool = True
    sandbox: Literal["namespace", "chroot"] = "namespace"
    threads: int = 0
    extra: tuple[str, ...] = ()


def find_binary(configured: str | Path = "") -> Path:
    """Return the virtiofsd to use.

    Raises:
        InvalidConfig: there is none.
    """
    for name in (str(configured),) if str(configured) else PLACES:
        if found := shutil.which(name):
            return Path(found)
    looked = configured or ", ".join(PLACES)
    raise InvalidConfig(f"no virtiofsd ({looked}); install it or configure its path")


def kind_of(binary: Path) -> Kind:
    """Return which of the two programs this is.

    Raises:
        InvalidConfig: it can't be run or is neither.
    """
    try:
        return _kind_of(str(binary), binary.stat().st_mtime_ns)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidConfig(f"can't run {binary}: {error}") from error


@lru_cache(maxsize=8)
def _kind_of(binary: str, _changed: int) -> Kind:
    done = subprocess.run(
        [binary, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_VERSION_TIMEOUT,
        check=False,
    )
    return parse_version(done.stdout + done.stderr, binary)


def parse_version(text: str, binary: str = "virtiofsd") -> Kind:
    """Return the kind from what ``--version`` printed.

    Raises:
        InvalidConfig: it is neither.
    """
    first = text.partition("\n")[0].split()
    if first[:2] == ["virtiofsd", "version"]:
        return "c"
    if len(first) == 2 and first[0].startswith("virtiofsd"):
        return "rust"
    raise InvalidConfig(f"{binary} is no virtiofsd we know: it says {text.strip()[:80]!r}")


def build_command(
    binary: Path, kind: Kind, fd: int, directory: Path, options: ShareOptions
) -> list[str]:
    """Return the command line for one share.

    Args:
        binary: the program.
        kind: which of the two it is.
        fd: listening socket it inherits.
        directory: what it shares.
        options: how.
    """
    # Both want more files than a small host allows; our own limit they can have.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    common = [f"--rlimit-nofile={limit}", f"--thread-pool-size={options.threads}"]
    if kind == "rust":
        ours = [*common, "--announce-submounts", f"--cache={options.cache}"]
        ours += [f"--sandbox={options.sandbox}", *(["--xattr"] if options.xattr else [])]
        # It refuses an option that is given twice.
        given = {_option_name(argument) for argument in options.extra}
        ours = [argument for argument in ours if _option_name(argument) not in given]
        return [str(binary), f"--fd={fd}", f"--shared-dir={directory}", *ours, *options.extra]
    cache_word = {"never": "none"}.get(options.cache, options.cache)
    # The C program reads -o as mount options: a comma or backslash must be escaped.
    source = str(directory).replace("\\", "\\\\").replace(",", "\\,")
    settings = [f"source={source}", "announce_submounts", f"cache={cache_word}"]
    settings += [f"sandbox={options.sandbox}", "xattr" if options.xattr else "no_xattr"]
    words = [word for setting in settings for word in ("-o", setting)]
    # Of the Rust program's names for what is above, the one that Kata's files have.
    extra = [argument for argument in options.extra if argument != "--announce-submounts"]
    return [str(binary), f"--fd={fd}", *common, *words, *extra]


def _option_name(argument: str) -> str:
    return argument.partition("=")[0]


@asynccontextmanager
async def run_virtiofsd(
    directory: Path,
    socket: Path,
    *,
    binary: str | Path = "",
    options: ShareOptions | None = None,
    record: Recorder | None = None,
    on_line: Callable[[str], None] | None = None,
) -> AsyncIterator[Process]:
    """Share a directory for as long as the block runs.

    The socket exists when the block is entered and a VMM may connect at once. Mounts made
    below ``directory`` later show in the guest only when it is a shared mount by now
    (``mount --bind`` on itself, ``mount --make-rshared``).

    Args:
        directory: what to share.
        socket: where the VMM connects; must not be over 107 bytes.
        binary: program or its name; empty finds one.
        options: how to share.
        record: told of the socket and the process.
        on_line: called with each line the daemon writes.

    Raises:
        InvalidConfig: no program, no directory, or no socket there.
    """

    def prepare() -> tuple[Path, Kind]:
        if not directory.is_dir():
            raise InvalidConfig(f"no directory to share at {directory}")
        found = find_binary(binary)
        return found, kind_of(found)

    program, kind = await trio.to_thread.run_sync(prepare)

    def start() -> subprocess.Popen[bytes]:
        # Bound before the daemon runs, so that nobody has to wait for it.
        with listen(socket) as listener:
            fd = listener.fileno()
            argv = build_command(program, kind, fd, directory, options or ShareOptions())
            return spawn(argv, pass_fds=(fd,))

    async with run_helper(
        "virtiofsd", start, sockets=(socket,), record=record, on_line=on_line
    ) as process:
        yield process
