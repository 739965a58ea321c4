"""Volumes of a container: what reaches the guest, and that it is what it was on the host."""

from __future__ import annotations

import os
import shutil
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ctr import Ctr
from tests.support.waiting import eventually
from tests.unit.shim.storage.test_tree import version

pytestmark = [pytest.mark.root, pytest.mark.vm]

Configured = Callable[[str], tuple[str, str]]


def bind(source: Path | str, target: str, options: str = "rbind:rw") -> tuple[str, str]:
    return "--mount", f"type=bind,src={source},dst={target},options={options}"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """A pod's directory below a kubelet directory of its own."""
    folder = tmp_path / "kubelet/pods/0a1b-2c3d"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def kubelet(configured: Configured, pod: Path) -> tuple[str, str]:
    return configured(f'[runtime]\nkubelet_root_dir = "{pod.parents[1]}"')


def volume(pod: Path, kind: str, name: str = "v") -> Path:
    folder = pod / f"volumes/kubernetes.io~{kind}/{name}"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def memory_dir(pod: Path) -> Iterator[Path]:
    """A memory-backed emptyDir of 1 MiB, as kubelet mounts it."""
    folder = volume(pod, "empty-dir")
    options = "size=1m,mode=2777,gid=2000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_memory_empty_dir_is_in_the_guest_and_keeps_its_size(
    ctr: Ctr, kubelet: tuple[str, str], memory_dir: Path, huge_dir: Path
) -> None:
    script = "stat -c '%a %g' /e; head -c 2000000 /dev/zero >/e/f; stat -c %s /e/f; mount | grep /e"
    # Its pod may have it as its shared memory, with a size of its own.
    mounts = [*bind(memory_dir, "/e"), *bind(memory_dir, "/dev/shm"), *bind(huge_dir, "/h")]
    script += "; stat -c %s /dev/shm/f; grep ' /h ' /proc/mounts; df -k /h | tail -1"
    output = ctr.run("sh", "-c", script, options=[*kubelet, *mounts])
    mode, size, line, same, huge, room = output.text.splitlines()
    assert same == size
    assert " hugetlbfs " in huge, output.error
    assert room.split()[1] == "4096"
    assert (mode, size) == ("2777 2000", "1048576"), output.error
    assert " tmpfs " in line.replace("type tmpfs", " tmpfs ")
    assert list(memory_dir.iterdir()) == []


@pytest.fixture
def huge_dir(pod: Path) -> Iterator[Path]:
    """An emptyDir of huge pages, as kubelet mounts it."""
    folder = volume(pod, "empty-dir", "huge")
    options = "pagesize=2M,size=4M"
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", options, "nodev", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


INOTIFY = r"""
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
libc.inotify_add_watch(fd, b"/c", 0x80)  # moved to
with open("/out/events", "ab", 0) as out:
    out.write(b"ready\n")
    while True:
        out.write(os.read(fd, 4096)[16:].replace(b"\0", b" ") + b"\n")
"""


# The image's busybox knows neither inotify nor unix sockets; the host's Python does.
HOST_PYTHON = [word for path in ("/usr", "/lib", "/lib64") for word in bind(path, path, "rbind:ro")]


@pytest.mark.core
def test_config_map_updates_arrive_whole_and_with_events(
    ctr: Ctr, kubelet: tuple[str, str], pod: Path, tmp_path: Path
) -> None:
    config = volume(pod, "configmap")
    version(config, "..2024_1", key="one", other="1")
    out = tmp_path / "out"
    out.mkdir()
    mounts = [*bind(config, "/c", "rbind:ro"), *bind(out, "/out"), *HOST_PYTHON]
    name = ctr.start("/usr/bin/python3", "-ISc", INOTIFY, options=[*kubelet, *mounts])
    assert ctr.exec(name, "/bin/cat", "/c/key", "/c/other").text == "one1"

    def events() -> str:
        path = out / "events"
        return path.read_text(errors="replace") if path.exists() else ""

    eventually(lambda: "ready" in events(), "the watch in the guest", timeout=20)
    many = {f"k{n}": "x" * n for n in range(500)}
    version(config, "..2024_2", key="two", other="2", **many)
    swapped = time.monotonic()
    shutil.rmtree(config / "..2024_1")
    eventually(lambda: "..data" in events(), "the event of the swapped link", timeout=20)
    print(f"the event of 502 files came after {time.monotonic() - swapped:.2f} s")
    assert ctr.exec(name, "/bin/cat", "/c/key", "/c/other").text == "two2"
    assert "..data_tmp" not in ctr.exec(name, "/bin/ls", "-a", "/c").text
    assert ctr.exec(name, "/bin/touch", "/c/new").code != 0


def test_a_large_secret_and_many_files(ctr: Ctr, kubelet: tuple[str, str], pod: Path) -> None:
    secret = volume(pod, "secret")
    many = {f"k{n}": "x" * n for n in range(500)}
    version(secret, "..1", **many, big="b" * (1 << 20))
    (secret / "..data/k7").chmod(0o400)
    os.chown(secret / "..data/k7", 0, 2000)
    script = "cd /s; ls | wc -l; wc -c <big; cat k* | wc -c; stat -Lc '%a %g' k7"
    output = ctr.run("sh", "-c", script, options=[*kubelet, *bind(secret, "/s")])
    assert output.text.split("\n") == ["501", str(1 << 20), "124750", "400 2000"], output.error


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.rfile.read1(65536):
            self.wfile.write(data)


@pytest.mark.core
def test_containers_of_a_pod_share_volumes(
    ctr: Ctr, kubelet: tuple[str, str], memory_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "mnt").mkdir(parents=True)
    (data / "file").write_text("x")
    first = ctr.new_id()
    group = ["--annotation", f"io.containerd.runc.v2.group={first}", *kubelet]
    memory = bind(memory_dir, "/e")
    propagating = ["--rootfs-propagation", "rshared", "--privileged"]
    options = [*propagating, *group, *memory, *bind(data, "/v", "rbind:rshared:rw")]
    ctr.start("sleep", "1000", name=first, options=options)
    following = ["--rootfs-propagation", "rslave", *bind(data, "/r", "rbind:rslave:ro")]
    second = ctr.start("sleep", "1000", options=[*group, *memory, *following])
    assert ctr.exec(first, "sh", "-c", "echo shared >/e/f").code == 0
    assert ctr.exec(second, "cat", "/e/f").text == "shared"
    where = "stat -c '%d %i'"
    inode = ctr.exec(first, "sh", "-c", f"{where} /v/file").text
    assert ctr.exec(second, "sh", "-c", f"{where} /r/file").text == inode
    assert ctr.exec(second, "touch", "/r/file").code != 0
    mounting = "mount -t tmpfs tmpfs /v/mnt && echo below >/v/mnt/f"
    assert ctr.exec(first, "sh", "-c", mounting).code == 0
    assert ctr.exec(second, "cat", "/r/mnt/f").text == "below"
    assert list((data / "mnt").iterdir()) == []
    ctr.remove(second)
    # The volume is there for whoever is left, and for the next.
    third = ctr.start("sleep", "1000", options=[*group, *memory])
    assert ctr.exec(third, "cat", "/e/f").text == "shared"
    ctr.remove(third)
    assert ctr.exec(first, "cat", "/v/file").text == "x"
    ctr.remove(first)


@pytest.fixture
def echo_socket(tmp_path: Path) -> Iterator[Path]:
    """A server on a unix socket of the host."""
    path = tmp_path / "echo.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_unix_socket_of_the_host(ctr: Ctr, echo_socket: Path) -> None:
    script = """
import socket, threading
def talk(data):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("/e.sock")
        def send():
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        threading.Thread(target=send).start()
        return b"".join(iter(lambda: s.recv(65536), b""))
print(talk(b"hello").decode())
data = bytes(range(256)) * 12000
print(talk(data) == data)
"""
    options = [*bind(echo_socket, "/e.sock"), *HOST_PYTHON]
    output = ctr.run("/usr/bin/python3", "-ISc", script, options=options)
    assert output.text == "hello\nTrue", output.error


# Says how each socket answers whenever that changes.
ASKING = """
import socket, time
own = socket.socket(socket.AF_UNIX)
try:
    place = "/r/own"
    own.bind(place)
except OSError:  # by 9p QEMU 7.2 makes none
    place = "/dev/own"
    own.bind(place)
own.listen()
def ask(path):
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(place if path == "/r/own" else path)
            if path == "/r/own":
                own.accept()[0].sendall(b"from the container")
            else:
                s.sendall(b"hello")
            s.shutdown(socket.SHUT_WR)
            return s.recv(100).decode() or "ended"
    except OSError as error:
        return error.strerror
said = {}
with open("/out/said", "w") as out:
    while True:
        for path in ("s", "inner/s", "later", "moved", "own"):
            answer = ask("/r/" + path)
            if said.get(path) != answer:
                said[path] = answer
                print(path, answer, sep=": ", file=out, flush=True)
        time.sleep(0.05)
"""


@contextmanager
def echoing(path: Path) -> Iterator[None]:
    """A server on a unix socket, which goes with it."""
    with socketserver.ThreadingUnixStreamServer(str(path), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def test_sockets_in_a_directory_of_the_host(ctr: Ctr, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    (folder / "inner").mkdir(parents=True)
    out.mkdir()
    none, seen = "No such file or directory", 0

    def say(*lines: str) -> None:
        nonlocal seen
        text = "".join(f"{line}\n" for line in lines)
        said = out / "said"
        what = f"{lines} after byte {seen}"
        eventually(lambda: said.exists() and text in said.read_text()[seen:], what, timeout=30)
        seen = said.stat().st_size

    with echoing(folder / "inner/s"):
        with echoing(folder / "s"):
            mounts = [*bind(folder, "/r", "rbind:rprivate:rw"), *bind(out, "/out"), *HOST_PYTHON]
            name = ctr.start("/usr/bin/python3", "-ISc", ASKING, options=mounts)
            # What the container makes is its own, whatever the host sees there.
            say(
                "s: hello",
                "inner/s: hello",
                f"later: {none}",
                f"moved: {none}",
                "own: from the container",
            )
        say(f"s: {none}")
        with echoing(folder / "later"), echoing(folder / "s"):
            say("s: hello")
            (folder / "s").rename(folder / "moved")
            say("moved: hello")
            assert "later: hello\n" in (out / "said").read_text()
        say(f"later: {none}")
    assert (out / "said").read_text().count("own: ") == 1
    ctr.remove(name)


def test_shm_has_the_size_that_the_host_gives(ctr: Ctr, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "shm", shm], check=True)
    try:
        output = ctr.run("sh", "-c", "df -k /dev/shm | tail -1", options=bind(shm, "/dev/shm"))
    finally:
        subprocess.run(["umount", shm], check=True)
    assert output.text.split()[1] == "2048", output.error


def test_read_only_holds_against_root_in_the_guest(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    script = "mount -o remount,rw,bind /v; echo y >/v/file; cat /v/file"
    options = ["--privileged", *bind(tmp_path, "/v", "rbind:ro")]
    output = ctr.run("sh", "-c", script, options=options)
    assert output.text == "x"
    assert "Read-only file system" in output.error
    assert (tmp_path / "file").read_text() == "x"


def test_a_fifo_of_the_host_is_the_pods_own(ctr: Ctr, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        script = "test -p /f && (echo through >/f &) && cat /f"
        output = ctr.run("sh", "-c", script, options=bind(fifo, "/f"))
        assert output.text == "through", output.error
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


def test_links_in_a_volume_do_not_lead_to_the_host(ctr: Ctr, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_text("the host's")
    (inner / "up").symlink_to("../secret")
    (inner / "absolute").symlink_to(tmp_path / "secret")
    script = "cat /v/up; cat /v/absolute; ls /v/../../../../../../../tmp; mknod /v/null c 1 3; true"
    output = ctr.run("sh", "-c", script, options=["--privileged", *bind(inner, "/v")])
    assert output.code == 0, output.error
    assert "the host's" not in output.text
    assert tmp_path.parts[2] not in output.text


def test_late_host_mounts_are_seen(ctr: Ctr, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    subprocess.run(["mount", "--make-rshared", tmp_path], check=True)
    try:
        name = ctr.start("sleep", "1000", options=bind(tmp_path, "/v", "rbind:rslave"))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
        (below / "late").write_text("seen")
        assert ctr.exec(name, "cat", "/v/below/late").text == "seen"
        ctr.remove(name)
    finally:
        subprocess.run(["umount", "-R", tmp_path], check=True)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A block device of the host with an ext4 file system of 16 MiB."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    done = subprocess.run(
        ["losetup", "--show", "-f", image], capture_output=True, text=True, check=True
    )
    yield done.stdout.strip()
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def test_raw_block_device(ctr: Ctr, loop_device: str) -> None:
    script = (
        f"for d in {loop_device} /dev/data; do blockdev --getsize64 $d; done; echo hi >/dev/data; "
        f"head -c 2 {loop_device}; sync"
    )
    options = ["--device", loop_device, *bind(loop_device, "/dev/data", "bind:rw")]
    output = ctr.run("sh", "-c", script, options=options)
    assert output.text.splitlines() == [str(16 << 20), str(16 << 20), "hi"], output.error
    with open(loop_device, "rb") as device:
        assert device.read(3) == b"hi\n"


def test_device_node_of_the_host_is_refused(ctr: Ctr) -> None:
    output = ctr.run("true", options=bind("/dev/loop-control", "/dev/lc"))
    assert output.code != 0
    assert "/dev/loop-control: a device node of the host is not in the VM" in output.error


def test_missing_source_is_refused(ctr: Ctr, tmp_path: Path) -> None:
    output = ctr.run("true", options=bind(tmp_path / "none", "/v"))
    assert output.code != 0
    assert f"{tmp_path}/none: No such file or directory" in output.error


def test_block_empty_dir(ctr: Ctr, configured: Configured, pod: Path) -> None:
    config = configured(
        f'[runtime]\nkubelet_root_dir = "{pod.parents[1]}"\nemptydir_mode = "block-plain"'
    )
    folder = volume(pod, "empty-dir")
    folder.chmod(0o777)
    script = "stat -c %a /e; ls /e; echo kept >>/e/f; cat /e/f; grep ' /e ' /proc/mounts"
    output = ctr.run("sh", "-c", script, options=[*config, *bind(folder, "/e")])
    mode, text, line = output.text.splitlines()
    assert (mode, text) == ("777", "kept"), output.error
    assert " ext4 " in line
    # A pod's next sandbox finds the data again.
    output = ctr.run("cat", "/e/f", options=[*config, *bind(folder, "/e")])
    assert output.text == "kept", output.error


def test_empty_dir_in_the_guest(ctr: Ctr, configured: Configured, pod: Path) -> None:
    config = configured(
        f'[runtime]\nkubelet_root_dir = "{pod.parents[1]}"\ndisable_guest_empty_dir = false'
    )
    folder = volume(pod, "empty-dir")
    folder.chmod(0o770)
    os.chown(folder, 0, 2000)
    output = ctr.run(
        "sh", "-c", "touch /e/f; stat -c '%a %g' /e", options=[*config, *bind(folder, "/e")]
    )
    assert output.text == "2770 2000", output.error
    assert list(folder.iterdir()) == []


@pytest.fixture
def unshared(configured: Configured) -> tuple[str, str]:
    return configured('[hypervisor.qemu]\nshared_fs = "none"')


def test_without_a_share_the_rootfs_is_packed(ctr: Ctr, unshared: tuple[str, str]) -> None:
    script = "echo new >/f && ln /f /g && rm /etc/hostname && cat /g && grep ' / ' /proc/mounts"
    output = ctr.run("sh", "-c", script, options=unshared)
    text, mounted = output.text.splitlines()
    assert text == "new", output.error
    assert mounted.startswith("overlay ")
    assert ctr.run("test", "-e", "/f", options=unshared).code == 1


def test_without_a_share_files_are_copied_and_kept_up_to_date(
    ctr: Ctr, unshared: tuple[str, str], tmp_path: Path
) -> None:
    hosts, folder = tmp_path / "hosts", tmp_path / "folder"
    hosts.write_text("1.2.3.4 one\n")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/link").symlink_to("../file")
    (folder / "file").write_text("content")
    options = [*unshared, *bind(hosts, "/etc/hosts"), *bind(folder, "/d")]
    name = ctr.start("sleep", "1000", options=options)
    assert ctr.exec(name, "cat", "/etc/hosts", "/d/sub/link").text == "1.2.3.4 one\ncontent"
    hosts.write_text("5.6.7.8 another\n")
    script = "until grep -q another /etc/hosts; do usleep 10000; done; wc -l </etc/hosts"
    assert ctr.exec(name, "sh", "-c", script).text == "1"


def test_without_a_share_an_empty_dir_is_a_disk(
    ctr: Ctr, configured: Configured, pod: Path
) -> None:
    kubelet = f'[runtime]\nkubelet_root_dir = "{pod.parents[1]}"'
    config = configured(f'{kubelet}\n[hypervisor.qemu]\nshared_fs = "none"')
    folder = volume(pod, "empty-dir")
    output = ctr.run("grep", " /e ", "/proc/mounts", options=[*config, *bind(folder, "/e")])
    assert " ext4 " in output.text, output.error


def test_without_a_share_a_large_volume_is_refused(
    ctr: Ctr, unshared: tuple[str, str], tmp_path: Path
) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(65 << 20)
    output = ctr.run("true", options=[*unshared, *bind(tmp_path, "/v")])
    assert output.code != 0
    assert "too much to be copied" in output.error


def test_a_sandbox_bind_mount_that_is_not_there(
    ctr: Ctr, configured: Configured, tmp_path: Path
) -> None:
    config = configured(f'[runtime]\nsandbox_bind_mounts = ["{tmp_path}/missing:rw"]')
    output = ctr.run("true", options=config)
    assert output.code != 0
    assert f"sandbox_bind_mounts: there is no {tmp_path}/missing" in output.error
