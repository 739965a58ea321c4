"""The ``delete`` action: clean up after one container, whether its shim lives or not.

containerd runs it at the end of every container and after a crash of the shim. It
is silent, idempotent and touches one id only, unless the shim is dead: then the VM
serves nobody, and the whole sandbox goes.

Source: containerd core/runtime/v2/README.md, "delete".
"""

from __future__ import annotations

import os
import time

from protos import lite
from protos.tables import containerd_task_v2 as task
from shim import bootstrap, sockets, stub
from shim.cleanup import ledger, process_table
from shim.errors import AlreadyExists, Internal, InvalidArgument, NotFound
from shim.ttrpc.status import DEADLINE_EXCEEDED, NOT_FOUND, TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.bootstrap import Arguments
    from shim.cleanup.ledger import Ledger
    from shim.log import Log

EXIT_STATUS = 137  # 128 + SIGKILL
ASK_TIMEOUT = 2.5  # seconds for a living shim to end and delete the container
KILL_TIMEOUT = 1.0  # seconds for a shim that does not react to end after SIGKILL
SETTLE_TIMEOUT = 0.3  # seconds for a shim that is on its way out to be gone
_SERVICE = "containerd.task.v2.Task"
_SIGKILL = 9


def delete(arguments: Arguments) -> bytes:
    """Clean up and give the DeleteResponse for standard output."""
    bundle = os.path.abspath(arguments.bundle or ".")
    log = stub.open_log(
        bundle, arguments.debug, namespace=arguments.namespace, id=arguments.id, action="delete"
    )
    try:
        return _delete(arguments, bundle, log)
    finally:
        log.close()


def _delete(arguments: Arguments, bundle: str, log: Log) -> bytes:
    sandbox = find_sandbox(bundle, arguments.id, log)
    path = find_socket(bundle, arguments, sandbox)
    ledger_path = ledger.ledger_path(ledger.state_dir(), arguments.namespace, sandbox)
    owner, pid = _look_up(ledger_path, log)
    if path and sockets.answers(path):
        try:
            response = ask(path, arguments.id)
        except TtrpcError as error:
            log.warning(f"the shim did not delete the container: {error.message}", socket=path)
            if error.code == DEADLINE_EXCEEDED and arguments.id == sandbox:
                # containerd has given the pod up, and its shim does not react
                process_table.kill([owner], KILL_TIMEOUT)
        else:
            if response is not None:
                return response
    if arguments.id == sandbox:
        process_table.wait_for_end(*owner, SETTLE_TIMEOUT)
    _sweep(ledger_path, arguments.id, log)
    if path and os.path.isdir(os.path.dirname(path)):
        sockets.remove_stale(path)
    return render(pid)


def render(pid: int) -> bytes:
    """The DeleteResponse of a container that was killed now."""
    now = time.time_ns()
    exited_at = {"seconds": now // 10**9, "nanos": now % 10**9}
    values = {"pid": pid, "exit_status": EXIT_STATUS, "exited_at": exited_at}
    return lite.encode(task.DeleteResponse, values)


def find_sandbox(bundle: str, container_id: str, log: Log) -> str:
    """The id of the sandbox a container belongs to, from what its bundle holds."""
    try:
        told = stub.read_file(f"{bundle}/sandbox")  # written by containerd 2.x for members
        if told:
            sandbox = told.decode().strip()
            bootstrap.check_name("sandbox id", sandbox)
            return sandbox
        return bootstrap.find_group(stub.read_file(f"{bundle}/config.json"), container_id).id
    except (InvalidArgument, OSError, UnicodeDecodeError) as error:
        log.warning(f"taking the container for its own sandbox: {error}")
        return container_id


def find_socket(bundle: str, arguments: Arguments, sandbox: str) -> str:
    """The path of the shim's socket, "" when the bundle holds none and none follows."""
    for name in ("address", "bootstrap.json"):
        record = stub.read_file(f"{bundle}/{name}")
        path = bootstrap.parse_record(record.decode("utf-8", "replace")) if record else ""
        if path:
            return path
    if not arguments.address:
        return ""
    return sockets.socket_path(
        sockets.default_dir(), arguments.address, arguments.namespace, sandbox
    )


def ask(path: str, container_id: str) -> bytes | None:
    """Have a living shim kill and delete a container.

    Returns:
        Its DeleteResponse; None when it does not know the container.

    Raises:
        TtrpcError: it did not do so in time.
    """
    from shim.oneshot import Connection

    name = {"id": container_id}
    with Connection(path, ASK_TIMEOUT) as shim:
        try:
            shim.call(_SERVICE, "State", lite.encode(task.StateRequest, name))
            kill = {**name, "signal": _SIGKILL, "all": True}
            try:
                shim.call(_SERVICE, "Kill", lite.encode(task.KillRequest, kill))
            except TtrpcError as error:
                if error.code != NOT_FOUND:  # it has exited already
                    raise
            shim.call(_SERVICE, "Wait", lite.encode(task.WaitRequest, name))
            return shim.call(_SERVICE, "Delete", lite.encode(task.DeleteRequest, name))
        except TtrpcError as error:
            if error.code == NOT_FOUND:
                return None
            raise


def _look_up(path: str, log: Log) -> tuple[tuple[int, int], int]:
    """The shim's identity and the VMM's pid by the ledger, zeros when it has none."""
    try:
        found = ledger.Ledger.load(path)
    except NotFound:
        return (0, 0), 0
    except (Internal, OSError) as error:
        log.error(str(error))
        return (0, 0), 0
    owner = found.owner if found.this_boot else (0, 0)
    return owner, _vmm_pid(found)


def _vmm_pid(found: Ledger) -> int:
    pids = [e.number("pid") for e in found.entries() if e.text("role") == "vmm"]
    return pids[0] if pids else 0


def _sweep(path: str, container_id: str, log: Log) -> None:
    """Undo what the ledger lists, if its owner is dead; a living one does it itself."""
    from shim.cleanup import sweeper

    try:
        owned = ledger.Ledger.open(path)
    except (NotFound, AlreadyExists):
        return
    except (Internal, OSError) as error:
        log.error(f"nothing swept: {error}")
        return
    log.info("the shim is gone, sweeping what it left", container=container_id)
    with owned:
        sweeper.sweep(owned, log.warning)
