"""From ``start`` to the serving process: what the parent prepares, what the child sheds.

The parent has bound and listens; it prints and exits as soon as it has forked. The
child cuts its ties to containerd and only then imports what takes long, while
early calls wait in the socket's backlog.

Source: containerd pkg/shim (adjustments before and after the fork).
"""

from __future__ import annotations

import os

from shim import bootstrap, sockets
from shim.errors import InvalidArgument, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from shim.context import ShimContext

OOM_SCORE_MAX = 1000
_KEPT_ENVIRONMENT = ("HOME", "LANG", "PATH", "TMPDIR", "TZ")
_KEPT_PREFIXES = ("KATAPY_", "LC_")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOP_PAD = 1 << 20  # keeps 64 KiB messages from growing and trimming the heap each time


def prepare(options: tuple[str, bytes] | None) -> None:
    """Give the calling process what its child shall inherit; all of it before the fork.

    Done here and not in the child so that containerd sees it as soon as ``start``
    returns, and so that a failure is a failure of ``start``.

    Raises:
        InvalidArgument: the options do not parse, or name no usable cgroup.
        Unavailable: SCHED_CORE was asked for and the kernel has no core scheduling.
    """
    raise_oom_score()
    cgroup = bootstrap.shim_cgroup(options)
    if cgroup:
        join_cgroup(cgroup)
    if os.environ.get("SCHED_CORE"):
        from shim import syscalls

        try:
            syscalls.prctl(
                syscalls.PR_SCHED_CORE,
                syscalls.PR_SCHED_CORE_CREATE,
                0,
                syscalls.PIDTYPE_PROCESS_GROUP,
            )
        except OSError as error:
            raise Unavailable(
                f"SCHED_CORE is set, but core scheduling is not to be had: {error}"
            ) from error


def raise_oom_score() -> None:
    """Make the shim one point likelier to be killed than containerd, as runc's is."""
    path = "/proc/self/oom_score_adj"
    try:
        with open(path, encoding="ascii") as file:
            score = int(file.read())
        with open(path, "w", encoding="ascii") as file:
            file.write(str(min(score + 1, OOM_SCORE_MAX)))
    except PermissionError:  # a container without the capability: nothing depends on it
        pass


def join_cgroup(cgroup: str) -> None:
    """Move this process into a cgroup, given relative to the cgroup mount.

    On a host with version 1 hierarchies, into it in every one that has it.

    Raises:
        InvalidArgument: no hierarchy has it, or it takes no processes.
    """
    root = "/sys/fs/cgroup"
    relative = os.path.normpath("/" + cgroup)
    if os.path.exists(f"{root}/cgroup.procs"):
        bases = [root]
    else:
        bases = [f"{root}/{name}" for name in sorted(os.listdir(root))]
    files = [f"{base}{relative}/cgroup.procs" for base in bases]
    present = [path for path in files if os.path.exists(path)]
    if not present:
        raise InvalidArgument(f"shim_cgroup {cgroup!r} is not below {root}")
    for path in present:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("0")
        except OSError as error:
            raise InvalidArgument(
                f"shim_cgroup {cgroup!r} takes no process: {path}: {error.strerror}"
            ) from error


def serve(context: ShimContext, listener: _socket.socket, site_packages: Sequence[str]) -> int:
    """Run the serving process; called in the child of ``start``.

    Args:
        context: filled but for listener, log and state directory.
        listener: the listening socket.
        site_packages: where trio and protobuf are.

    Returns:
        The exit status.
    """
    os.setsid()
    context.listener_fd = _drop_descriptors(listener.detach())
    from shim import stub
    from shim.cleanup import ledger

    os.chdir("/")
    context.state_dir = ledger.state_dir()
    context.log_fifo = f"{context.bundle}/log"
    context.log = stub.open_log(
        context.bundle, context.debug, namespace=context.namespace, id=context.group_id
    )
    _scrub_environment()
    context.stamp("forked")
    try:
        _become_reaper()
        import sys

        sys.path.extend(site_packages)
        from importlib import import_module

        from shim import unused

        unused.leave_out()
        daemon = import_module("shim.daemon")
        context.stamp("imported")
        daemon.main(context)
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            return 0
        _report(context, error)
        return 1
    else:
        return 0
    finally:
        sockets.remove_own(context.socket_path, context.socket_identity)


def _drop_descriptors(listener_fd: int) -> int:
    """Put /dev/null on 0 to 2, keep the listener as 3 and close everything else."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if listener_fd != 3:
        os.dup2(listener_fd, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


def _scrub_environment() -> None:
    """Keep the daemon's secrets and settings from the VMM and its helpers."""
    for name in list(os.environ):
        if name not in _KEPT_ENVIRONMENT and not name.startswith(_KEPT_PREFIXES):
            del os.environ[name]
    os.environ.setdefault("PATH", _DEFAULT_PATH)


def _become_reaper() -> None:
    """Adopt orphans of helpers, so that they are reaped and can be found."""
    from shim import syscalls

    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    syscalls.mallopt(syscalls.M_TOP_PAD, _TOP_PAD)
    syscalls.mallopt(syscalls.M_TRIM_THRESHOLD, 2 * _TOP_PAD)


def _report(context: ShimContext, error: BaseException) -> None:
    import traceback

    lines = traceback.format_exception(error)
    context.log.error(f"the shim failed: {error!r}")
    for line in "".join(lines).splitlines():
        context.log.error(line)
