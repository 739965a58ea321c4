"""Mounts and unmounts, off the event loop, with a deadline and on record.

Source: containerd core/mount (mount_linux.go, unmount); mount(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import trio

from shim.errors import DeadlineExceeded, Internal, InvalidArgument, KatapyError
from shim.storage import syscalls
from shim.storage.idmap import idmapped, idmapped_layers, user_namespace
from shim.storage.loop import attach_loop
from shim.storage.options import (
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    Mount,
    MountOptions,
    Owners,
    parse_options,
)
from shim.storage.overlay import compact
from shim.storage.trees import attach_clone
from shim.syscalls import unmount_all

MOUNT_TIMEOUT = 20.0
"""Seconds for one mount or unmount; a dead disk or FUSE server blocks for ever."""

_BAD_REQUEST = frozenset(
    (errno.ENOENT, errno.ENODEV, errno.ENOTBLK, errno.ENOTDIR, errno.EINVAL, errno.EISDIR)
)


class Recorder(Protocol):
    """Where a resource is noted before it is made; the pod's ledger is one."""

    def add(self, kind: str, **fields: Any) -> Any:
        """Note a resource and return what identifies the note."""

    def remove(self, entry: Any) -> None:
        """Forget a resource that is gone."""


async def mount(
    entry: Mount, target: str, recorder: Recorder, *, timeout: float = MOUNT_TIMEOUT
) -> Any:
    """Make one mount at ``target``, an existing directory or file.

    Args:
        entry: what to mount; its own ``target`` is the caller's business.
        target: absolute path.
        recorder: gets ``mount`` with the target before it is made.
        timeout: seconds.

    Returns:
        The recorder's entry, to be forgotten when the mount is gone.

    Raises:
        InvalidArgument: it can't be mounted because of what it says.
        ResourceExhausted: too many overlay layers.
        DeadlineExceeded: the file system does not answer.
        Internal: the host refuses.
    """
    options = parse_options(entry.options)
    if not (entry.type == "overlay" and (options.uid_map or options.gid_map)):
        scratch, noted = "", None
    else:
        scratch = f"{os.environ.get('TMPDIR', '/tmp')}/katapy-idmap-{os.urandom(8).hex()}"
        noted = recorder.add("dir", path=scratch, tree=True)

    def call() -> None:
        _mount(entry, options, target, scratch)

    try:
        note = await _recorded(call, target, recorder, timeout, f"mount at {target}")
    except (DeadlineExceeded, trio.Cancelled):
        raise  # the thread goes on, and may need it yet
    except BaseException:
        _forget(recorder, noted)
        raise
    _forget(recorder, noted)
    return note


def _forget(recorder: Recorder, note: Any) -> None:
    if note is not None:
        recorder.remove(note)


async def unmount(target: str, *, timeout: float = MOUNT_TIMEOUT) -> None:
    """Detach all mounts at ``target``, the topmost first. Not mounted is fine.

    They are detached lazily: a server of the shared tree may hold files in them.

    Raises:
        DeadlineExceeded: the kernel does not answer.
        Internal: the host refuses.
    """
    await in_thread(lambda: unmount_all(target), timeout, f"unmount {target}")


async def bind(
    source: str,
    target: str,
    recorder: Recorder,
    *,
    read_only: bool = False,
    writable_below: bool = False,
    follow: bool = True,
    recursive: bool = True,
    devices: bool = True,
    owners: Owners | None = None,
    timeout: float = MOUNT_TIMEOUT,
) -> Any:
    """Show ``source`` at ``target``, read-only all the way down if so wanted.

    ``writable_below`` lets what is mounted below be as writable as it is, ``follow`` has
    mounts made there later appear, ``devices`` False keeps device nodes from being opened,
    ``owners`` shows the files as somebody else's.

    Args, result and errors are those of :func:`mount`.
    """

    def call() -> None:
        with contextlib.ExitStack() as stack:
            namespace = stack.enter_context(user_namespace(owners)) if owners else None
            attach_clone(
                source,
                target,
                recursive=recursive,
                read_only=read_only,
                writable_below=writable_below,
                follow=follow,
                devices=devices,
                user_namespace=namespace,
            )

    return await _recorded(call, target, recorder, timeout, f"bind of {source} at {target}")


async def in_thread(call: Callable[[], None], timeout: float, what: str) -> None:
    """Run a blocking call in a worker thread, which is left behind at the deadline.

    Raises:
        DeadlineExceeded: naming ``what``.
        InvalidArgument, Internal: for an OSError, naming ``what``.
    """
    try:
        with trio.fail_after(timeout):
            await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    except trio.TooSlowError as error:
        raise DeadlineExceeded(
            f"{what}: no answer within {timeout:g} s; look for a hanging disk or file server"
        ) from error
    except OSError as error:
        kind = InvalidArgument if error.errno in _BAD_REQUEST else Internal
        raise kind(f"{what}: {error.strerror or error} ({error.filename})") from error


async def _recorded(
    call: Callable[[], None], target: str, recorder: Recorder, timeout: float, what: str
) -> Any:
    note = recorder.add("mount", target=target)
    try:
        await in_thread(call, timeout, what)
    except (DeadlineExceeded, trio.Cancelled):
        raise  # the thread goes on and it may come about yet: stays on record
    except BaseException:
        recorder.remove(note)
        raise
    return note


def _mount(entry: Mount, options: MountOptions, target: str, scratch: str) -> None:
    try:
        with _device(entry, options) as source:
            _mount_source(entry, options, source, target, scratch)
            try:
                _finish(options, target)
            except BaseException:
                syscalls.umount(target, syscalls.MNT_DETACH)
                raise
    except OSError as error:
        where = f"{entry.type} {entry.source} with {','.join(entry.options) or 'no options'}"
        raise OSError(error.errno, error.strerror, where) from error


@contextlib.contextmanager
def _device(entry: Mount, options: MountOptions) -> Iterator[str]:
    if not options.loop:
        yield entry.source
        return
    device, path = attach_loop(
        entry.source, read_only=options.read_only, direct_io=options.direct_io
    )
    try:
        yield path
    finally:
        os.close(device)


def _mount_source(
    entry: Mount, options: MountOptions, source: str, target: str, scratch: str
) -> None:
    if entry.type == "overlay":
        with idmapped_layers(options, scratch) as data:
            directory, joined = compact(data)
            _in_directory(
                directory,
                lambda: syscalls.mount(source, target, "overlay", options.flags, joined),
            )
    elif entry.type.startswith(("fuse.", "fuse3.")):
        _mount_fuse(entry, target)
    elif entry.type == "bind" or options.flags & MS_BIND:
        flags = MS_BIND | options.flags & MS_REC
        if options.uid_map or options.gid_map:
            idmapped(source, target, options, recursive=bool(flags & MS_REC))
        else:
            attach_clone(source, target, recursive=bool(flags & MS_REC))
    else:
        syscalls.mount(source, target, entry.type, options.flags, ",".join(options.data))
        if options.uid_map or options.gid_map:
            idmapped(target, target, options, recursive=False)


def _finish(options: MountOptions, target: str) -> None:
    rest = options.flags & ~(MS_BIND | MS_REC | MS_REMOUNT)
    if options.flags & MS_BIND and rest:
        # The flags of a bind mount's first mount(2) are ignored.
        syscalls.mount("", target, "", MS_BIND | MS_REMOUNT | rest | _kept_flags(target))
    for flags in options.propagation:
        syscalls.mount("", target, "", flags)


def _kept_flags(target: str) -> int:
    """Flags of the mount which a remount would take off.

    statvfs spells the first four as mount(2) does; the atime ones are shifted.
    """
    found = os.statvfs(target).f_flag
    kept = found & 0xF & ~MS_RDONLY
    for bit, flag in ((0x400, 0x400), (0x800, 0x800), (0x1000, 1 << 21)):
        kept |= flag if found & bit else 0
    return kept


def _mount_fuse(entry: Mount, target: str) -> None:
    kind, _, subtype = entry.type.partition(".")
    command = [f"mount.{kind}", entry.source, target, "-o", ",".join(entry.options), "-t", subtype]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise InvalidArgument(f"mount type {entry.type}: {command[0]} is not installed") from error
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise Internal(
            f"mount type {entry.type}: {command[0]} ended with {done.returncode}: {text}"
        )


def _in_directory(directory: str | None, call: Callable[[], None]) -> None:
    """Run ``call`` from ``directory``, in a thread of its own that ends with it."""
    if directory is None:
        call()
        return
    failures: list[OSError | KatapyError] = []

    def run() -> None:
        try:
            syscalls.unshare_directory()
            os.chdir(directory)
            call()
        except (OSError, KatapyError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="overlay mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
