"""What a sandbox owns on this host, on disk before it exists.

One JSON file per sandbox. Each change is written to a temporary file, fsynced and
renamed over the old one, so a reader or a crash sees the old state or the new
one. Whoever changes a ledger holds a lock on its directory for as long as the
object lives; the kernel drops it with the process, so "locked" means the owner is
alive, and whoever gets the lock may sweep.

Standard library only: ``delete`` uses it.
"""

from __future__ import annotations

import os

from shim.bootstrap import check_name
from shim.cleanup import process_table
from shim.errors import AlreadyExists, Internal, NotFound
from shim.sockets import sha256_hex, wait_for_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    Value = str | int | bool

FILE_NAME = "ledger.json"
DEFAULT_STATE_DIR = "/run/katapy"
CREATE_TIMEOUT = 3.0  # seconds the previous shim of this id may take to end
_FORMAT = 1

# The fields an entry of each kind must have. Every entry may also carry
# `container`, the id of the one container it serves.
KINDS: dict[str, tuple[str, ...]] = {
    "process": ("pid", "start_time", "role"),  # 0, 0 until known; `marker` finds it meanwhile
    "mount": ("target",),
    "socket": ("path",),
    "file": ("path",),
    "dir": ("path",),  # with `tree` true its content goes too
    # netns: path of its namespace, "" for the host's; `netns_id` says that it is still the one
    "netdev": ("name", "netns"),
    "qdisc": ("link", "parent", "netns"),  # parent: "ingress" or "root"
    "pci_driver": ("address", "driver"),  # a function that gets its driver back
    "pod_cgroup": ("name",),  # path from the root of each hierarchy that has it
}


LOGGER_ROLE = "logger"
"""Role of a process that ends by itself once its input has: it may do so first."""


def state_dir() -> str:
    """The directory of all ledgers: $KATAPY_STATE_DIR, else the default."""
    return os.environ.get("KATAPY_STATE_DIR") or DEFAULT_STATE_DIR


def ledger_path(state: str, namespace: str, sandbox_id: str) -> str:
    """Where the ledger of a sandbox is."""
    return f"{state}/{namespace}/{sandbox_id}/{FILE_NAME}"


def runtime_dir(state: str, namespace: str, sandbox_id: str) -> str:
    """A directory for a sandbox's sockets, short whatever the id; the caller makes it."""
    name = f"{namespace}/{sandbox_id}".encode("utf-8", "surrogateescape")
    return f"{state}/s/{sha256_hex(name)[:20]}"


def boot_id() -> str:
    """The kernel's id of this boot; pids and mounts of another boot are gone."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class Entry:
    """One thing a sandbox owns: its kind and what is needed to undo it."""

    __slots__ = ("fields", "id", "kind")

    def __init__(self, number: int, kind: str, fields: dict[str, Value]) -> None:
        self.id = number
        self.kind = kind
        self.fields = fields

    def text(self, name: str) -> str:
        """A field as text, "" when the entry has none."""
        return str(self.fields.get(name, ""))

    def number(self, name: str) -> int:
        """A field as number, 0 when the entry has none."""
        return int(self.fields.get(name, 0))

    @property
    def container(self) -> str:
        """The id of the container it belongs to, "" for the whole sandbox."""
        return self.text("container")

    def __repr__(self) -> str:
        pairs = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.kind} {pairs}"


class Ledger:
    """The resources of one sandbox; see the module text. Use as a context manager or close().

    ``owner`` is the identity (pid, start time) of the process that last owned it;
    ``this_boot`` is false when it was written before the host was restarted.
    """

    def __init__(self, path: str, namespace: str, sandbox_id: str, lock_fd: int) -> None:
        self.path = path
        self.namespace = namespace
        self.sandbox_id = sandbox_id
        self.owner: tuple[int, int] = (0, 0)
        self.this_boot = True
        self._lock_fd = lock_fd
        self._entries: dict[int, Entry] = {}
        self._next = 1

    @classmethod
    def create(cls, state: str, namespace: str, sandbox_id: str) -> Self:
        """Make the ledger of a new sandbox and own it.

        When a dead shim left one, its entries are kept: sweep them before use.

        Raises:
            AlreadyExists: a living process owns it.
            Internal: the file that is there is unreadable.
        """
        check_name("namespace", namespace)
        check_name("sandbox id", sandbox_id)
        path = ledger_path(state, namespace, sandbox_id)
        lock_fd = _lock(path, CREATE_TIMEOUT, create=True)
        if lock_fd is None:
            raise AlreadyExists(f"sandbox {sandbox_id}: {path} is owned by a running process")
        try:
            ledger = cls(path, namespace, sandbox_id, lock_fd)
            if os.path.exists(path):
                ledger._read()
            ledger.owner = process_table.own_identity()
            ledger._write(ledger._entries)
        except BaseException:
            os.close(lock_fd)
            raise
        return ledger

    @classmethod
    def open(cls, path: str, timeout: float = 0.0) -> Self:
        """Own an existing ledger, to sweep it or to take a sandbox over.

        Args:
            path: the ledger file.
            timeout: seconds to wait for the present owner to end.

        Raises:
            NotFound: there is no ledger.
            AlreadyExists: a living process owns it.
            Internal: it is unreadable.
        """
        lock_fd = _lock(path, timeout, create=False)
        if lock_fd is None:
            raise AlreadyExists(f"{path} is owned by a running process")
        try:
            ledger = cls(path, "", "", lock_fd)
            ledger._read()
        except BaseException:
            os.close(lock_fd)
            raise
        return ledger

    @classmethod
    def load(cls, path: str) -> Self:
        """Read a ledger without owning it; it can't be changed then.

        Raises:
            NotFound: there is no ledger.
            Internal: it is unreadable.
        """
        ledger = cls(path, "", "", -1)
        ledger._read()
        return ledger

    def add(self, kind: str, **fields: Value) -> Entry:
        """Record a thing that is about to be made; on disk when this returns.

        Raises:
            ValueError: unknown kind, or a field of the kind is missing.
            Internal: it could not be recorded, so the thing must not be made.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of ledger entry: {kind}")
        missing = [name for name in KINDS[kind] if name not in fields]
        if missing:
            raise ValueError(f"ledger entry {kind} needs {', '.join(missing)}")
        entry = Entry(self._next, kind, fields)
        self._record({**self._entries, entry.id: entry})
        self._next += 1
        return entry

    def update(self, entry: Entry, **fields: Value) -> None:
        """Change fields of an entry, such as the pid once it is known.

        Raises:
            Internal: it could not be recorded.
        """
        changed = Entry(entry.id, entry.kind, {**entry.fields, **fields})
        self._record({**self._entries, entry.id: changed})
        entry.fields = changed.fields
        self._entries[entry.id] = entry

    def remove(self, entry: Entry) -> None:
        """Forget a thing that is gone; no error when it is forgotten already."""
        if entry.id in self._entries:
            self._write({number: e for number, e in self._entries.items() if number != entry.id})

    def entries(self) -> list[Entry]:
        """All entries in the order they were made."""
        return list(self._entries.values())

    def close(self) -> bool:
        """Give the ledger up; the file goes when it is empty, the directory then too.

        Returns:
            False when entries are left, and with them the file for the sweeper.
        """
        if self._lock_fd < 0:
            return not self._entries
        try:
            if not self._entries:
                _unlink(self.path)
                _unlink(self.path + ".tmp")
                directory = os.path.dirname(self.path)
                _rmdir(directory)
                _rmdir(os.path.dirname(directory))
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1
        return not self._entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _record(self, entries: dict[int, Entry]) -> None:
        try:
            self._write(entries)
        except OSError as error:
            raise Internal(f"{self.path} can't be written: {error.strerror}") from error

    def _write(self, entries: dict[int, Entry]) -> None:
        if self._lock_fd < 0:
            raise ValueError(f"{self.path} is open for reading only")
        import json

        document = {
            "format": _FORMAT,
            "namespace": self.namespace,
            "sandbox": self.sandbox_id,
            "boot": boot_id(),
            "owner": list(self.owner),
            "entries": [{"id": e.id, "kind": e.kind, **e.fields} for e in entries.values()],
        }
        data = json.dumps(document, indent=1).encode()
        temporary = self.path + ".tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, self.path)
        os.fsync(self._lock_fd)  # the lock is on the directory, whose entry just changed
        self._entries = entries

    def _read(self) -> None:
        import json

        try:
            with open(self.path, "rb") as file:
                document = json.loads(file.read())
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']} is not {_FORMAT}")
            self.namespace = document["namespace"]
            self.sandbox_id = document["sandbox"]
            pid, started = document["owner"]
            self.owner = (int(pid), int(started))
            self.this_boot = document["boot"] == boot_id()
            for fields in document["entries"]:
                number, kind = int(fields.pop("id")), fields.pop("kind")
                self._entries[number] = Entry(number, kind, fields)
        except FileNotFoundError:
            raise NotFound(f"no ledger at {self.path}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Internal(f"{self.path} is not a ledger: {error}") from error
        self._next = max(self._entries, default=0) + 1


def find_all(state: str) -> Iterator[str]:
    """The paths of all ledgers below a state directory."""
    for namespace in _listdir(state):
        for sandbox in _listdir(f"{state}/{namespace}"):
            path = ledger_path(state, namespace, sandbox)
            if os.path.exists(path):
                yield path


def _lock(path: str, timeout: float, *, create: bool) -> int | None:
    """Lock the directory of a ledger; None when another process keeps it locked."""
    directory = os.path.dirname(path)
    while True:
        if create:
            os.makedirs(os.path.dirname(directory), 0o711, exist_ok=True)
            try:
                os.mkdir(directory, 0o700)
            except FileExistsError:
                pass
            except FileNotFoundError:  # another sandbox's end took the empty parent away
                continue
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if create:
                continue
            raise NotFound(f"no ledger at {path}") from None
        if not wait_for_lock(fd, timeout):
            os.close(fd)
            return None
        try:
            if os.path.samestat(os.fstat(fd), os.stat(directory)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)  # the previous owner removed what we locked


def _listdir(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unlink(path: str) -> None:
    try:  # noqa: SIM105 - contextlib is not worth importing here
        os.unlink(path)
    except FileNotFoundError:
        pass


def _rmdir(path: str) -> None:
    try:  # noqa: SIM105 - contextlib is not worth importing here
        os.rmdir(path)
    except OSError:  # not empty: others live there
        pass
