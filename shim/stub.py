"""The shim binary: ``start``, ``delete``, ``-info``, ``-v``; what containerd executes.

Standard library only, with few imports, until ``start`` has printed its address.
containerd reads standard output and standard error of ``start`` as one text, so a
stray byte on either corrupts the address; fd 2 therefore goes away first of all.

Source: containerd core/runtime/v2/README.md.
"""

from __future__ import annotations

import os
import sys

from shim import bootstrap, sockets
from shim.context import ShimContext
from shim.errors import KatapyError, Unavailable
from shim.log import DEBUG, INFO, Log, open_fifo

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from shim.bootstrap import Arguments

STDIN_MAX = 1 << 20  # bytes; options hold a few kilobytes at most
CONFIG_MAX = 16 << 20


def main(argv: Sequence[str], site_packages: Sequence[str] = ()) -> int:
    """Run one action of the shim binary.

    Args:
        argv: the arguments after the program name.
        site_packages: directories of third-party packages, which only the serving
            process needs.

    Returns:
        The exit status. ``start`` returns twice: in the parent at once, in the
        serving process when the pod has ended.
    """
    if "start" in argv or "delete" in argv:
        divert_stderr()
    try:
        arguments = bootstrap.parse_arguments(argv)
        if arguments.version:
            from shim.version import VERSION

            _print(f"containerd-shim-katapy-v2: {VERSION}\n".encode())
            return 0
        if arguments.info:
            from shim import info

            _print(info.runtime_info(read_stdin()))
            return 0
        if arguments.action == "delete":
            from shim import delete

            _print(delete.delete(arguments))
            return 0
        return start(arguments, site_packages)
    except (KatapyError, OSError) as error:
        line = f"katapy: {' '.join(str(error).split())}\n".encode("utf-8", "backslashreplace")
        _print(line)  # containerd shows what `start` printed; of `delete` it reads the log only
        if "delete" in argv:
            _complain(line)
        return 1


def divert_stderr() -> None:
    """Point fd 2 at the bundle's log FIFO, or at /dev/null when there is none."""
    fd = open_fifo("log")
    if fd < 0:
        fd = os.open(os.devnull, os.O_RDWR)
    os.dup2(fd, 2)
    if fd != 2:
        os.close(fd)


def start(arguments: Arguments, site_packages: Sequence[str]) -> int:
    """Print the address of the container's shim, starting it unless it runs."""
    context = ShimContext()
    context.stamp("stub")
    given = bootstrap.parse_stdin(read_stdin(), arguments.id, arguments.namespace)
    bundle = os.path.abspath(arguments.bundle or ".")
    group = bootstrap.find_group(read_file(f"{bundle}/config.json"), arguments.id)
    context.namespace = arguments.namespace
    context.id = arguments.id
    context.group_id = group.id
    context.bundle = bundle
    context.grpc_address = given.grpc_address or arguments.address
    context.ttrpc_address = given.ttrpc_address or os.environ.get("TTRPC_ADDRESS", "")
    context.publish_binary = given.publish_binary or arguments.publish_binary
    context.debug = arguments.debug or given.debug
    context.options = given.options
    directory = given.socket_dir or sockets.default_dir()
    path = arguments.socket or sockets.socket_path(
        directory, context.grpc_address, context.namespace, group.id
    )
    context.socket_path = path
    answer = bootstrap.render_answer(f"unix://{path}", given.params)

    with sockets.DirectoryLock(os.path.dirname(path)):
        if sockets.answers(path):
            write_address(bundle, path)
            _print(answer)
            return 0
        if group.member:
            raise Unavailable(
                f"container {arguments.id}: the VM of its pod {group.id} is gone"
                f" (nobody listens at {path}); remove the pod and make it anew"
            )
        listener = sockets.listen(path)
    try:
        context.socket_identity = sockets.identity(path)
        context.stamp("listening")
        write_address(bundle, path)
        from shim import serve

        serve.prepare(given.options)
        pid = os.fork()
    except BaseException:
        _abandon(listener, path)
        raise
    if pid:
        _print(answer)
        os._exit(0)  # the interpreter's tear-down would only keep containerd waiting
    return serve.serve(context, listener, site_packages)


def _abandon(listener: _socket.socket, path: str) -> None:
    own = sockets.identity(path)
    listener.close()
    sockets.remove_own(path, own)


def read_stdin() -> bytes:
    """All of standard input, which containerd closes after the message.

    Raises:
        InvalidArgument: it is longer than STDIN_MAX.
    """
    try:
        if os.isatty(0):
            return b""
        return _read_all(0, STDIN_MAX, "standard input")
    except OSError:  # closed: nothing was sent
        return b""


def read_file(path: str) -> bytes | None:
    """A file of the bundle, None when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _read_all(fd, CONFIG_MAX, path)
    finally:
        os.close(fd)


def _read_all(fd: int, limit: int, what: str) -> bytes:
    data = bytearray()
    while chunk := os.read(fd, 65536):
        data += chunk
        if len(data) > limit:
            from shim.errors import InvalidArgument

            raise InvalidArgument(f"{what} holds more than {limit} bytes")
    return bytes(data)


def write_address(bundle: str, path: str) -> None:
    """Leave the address in a bundle, for the daemon's restart and for ``delete``."""
    temporary = f"{bundle}/.address"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"unix://{path}".encode())
    finally:
        os.close(fd)
    os.rename(temporary, f"{bundle}/address")


def open_log(bundle: str, debug: bool, **fields: str) -> Log:
    """The log of one bundle."""
    return Log(open_fifo(f"{bundle}/log"), DEBUG if debug else INFO, fields)


def _complain(line: bytes) -> None:
    try:  # noqa: SIM105 - contextlib is not worth importing here
        os.write(2, line)
    except OSError:  # the FIFO is full
        pass


def _print(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
