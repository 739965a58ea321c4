"""A pod's network as containerd's clients give it: links in a network namespace."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.lib.tools import fetch_cni_plugins, fetch_passt, fetch_qemu, fetch_slirp4netns
from tests.support import versions
from tests.support.ctr import RUN_TIMEOUT, Ctr
from tests.support.pod_netns import Netns, join_by_veth, new_netns
from tests.support.runtime_processes import kill_process, shim_of
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.vm]

SEEN = 15.0
"""Seconds until a change in the namespace must be seen in the guest."""


@pytest.fixture
def pod(token: str) -> Iterator[Netns]:
    """The pod's network namespace; its links must be as they were in the end."""
    with new_netns(f"{token}-pod") as netns:
        yield netns


@pytest.fixture
def world(token: str) -> Iterator[Netns]:
    """What the pod talks to."""
    with new_netns(f"{token}-world") as netns:
        yield netns


def in_pod(netns: Netns) -> list[str]:
    return ["--with-ns", f"network:{netns.path}"]


def assert_untouched(pod: Netns) -> None:
    assert pod.links() == {"lo", "eth0"}
    assert pod.run("tc", "qdisc").count("\n") == 2, pod.run("tc", "qdisc")


@pytest.mark.core
def test_either_family_both_ways(ctr: Ctr, pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world, mtu=1400)
    pod.ip("neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0")
    name = ctr.start("sleep", "1000", options=in_pod(pod))
    for target in ("192.0.2.1", "2001:db8::1"):
        assert ctr.exec(name, "ping", "-c", "2", "-W", "5", target).code == 0
        # Larger than the link's MTU: fragments, and of the right size.
        assert ctr.exec(name, "ping", "-c", "1", "-s", "4000", "-W", "5", target).code == 0
    shown = ctr.exec(name, "ip", "addr", "show", "dev", "eth0").text
    for wanted in ("mtu 1400", "02:00:00:00:02:02", "192.0.2.2/24", "2001:db8::2/64"):
        assert wanted in shown
    assert "LOOPBACK,UP" in ctr.exec(name, "ip", "addr", "show", "dev", "lo").text
    assert "default via 192.0.2.1" in ctr.exec(name, "ip", "route").text
    assert "default via 2001:db8::1" in ctr.exec(name, "ip", "-6", "route").text
    assert "02:00:00:00:00:09" in ctr.exec(name, "ip", "neigh").text
    for address in ("192.0.2.2", "2001:db8::2"):
        world.run("busybox", "ping", "-c", "2", "-W", "5", address)
    stats = json.loads(ctr.ok("tasks", "metrics", "--format", "json", name).text)
    (link,) = [row for row in stats["network"] if row["name"] == "eth0"]
    assert link["rx_packets"] > 5
    assert link["tx_bytes"] > 4000
    ctr.remove_all()
    assert_untouched(pod)


@pytest.mark.parametrize(
    ("host", "guest"), [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")]
)
def test_tcp_and_udp(ctr: Ctr, pod: Netns, world: Netns, host: str, guest: str) -> None:
    join_by_veth(pod, world)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    name = ctr.start("sleep", "1000", options=in_pod(pod))

    def in_container(script: str) -> str:
        output = ctr.exec(name, "sh", "-c", script)
        assert output.code == 0, output.error
        return output.text

    with world.socket(family, socket.SOCK_STREAM) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind((host, 7000))
        listener.listen()
        got = pool.submit(take_all, listener)
        script = f"head -c 1000000 /dev/urandom >/d; sha256sum </d; nc {host} 7000 </d"
        assert in_container(script).split()[0] == got.result(SEEN)

    data = bytes(range(256)) * 4096
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(in_container, "nc -l -p 7001 | sha256sum")
        sock = eventually(lambda: dial(world, family, guest), "the container", timeout=SEEN)
        assert sock is not None
        with sock:
            sock.sendall(data)
        assert told.result(SEEN).split()[0] == hashlib.sha256(data).hexdigest()

    with world.socket(family, socket.SOCK_DGRAM) as server, ThreadPoolExecutor(1) as pool:
        server.bind((host, 53))
        answered = pool.submit(answer_name, server)
        assert "198.51.100.99" in in_container(f"nslookup -type=a some.name {host}")
        answered.result(SEEN)
    ctr.remove_all()
    assert_untouched(pod)


def take_all(listener: socket.socket) -> str:
    """Accept a connection, read it to its end, and return the sum of it."""
    connection, _ = listener.accept()
    digest = hashlib.sha256()
    with connection:
        while data := connection.recv(65536):
            digest.update(data)
    return digest.hexdigest()


def dial(netns: Netns, family: int, address: str) -> socket.socket | None:
    sock = netns.socket(family, socket.SOCK_STREAM)
    if sock.connect_ex((address, 7001)) == 0:
        return sock
    sock.close()
    return None


def answer_name(server: socket.socket) -> None:
    """Answer one DNS question with one address (RFC 1035)."""
    query, client = server.recvfrom(512)
    header = query[:2] + b"\x81\x80" + b"\0\1\0\1\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("198.51.100.99")
    server.sendto(header + query[12:] + record, client)


@pytest.mark.core
def test_links_that_come_and_go_while_it_runs(ctr: Ctr, pod: Netns, world: Netns) -> None:
    name = ctr.start("sleep", "1000", options=in_pod(pod))

    def shows(what: str, *words: str) -> None:
        eventually(lambda: what in ctr.exec(name, "ip", *words).text, what, timeout=SEEN)

    join_by_veth(pod, world)
    shows("192.0.2.2", "addr")
    assert ctr.exec(name, "ping", "-c", "2", "-W", "5", "192.0.2.1").code == 0
    pod.ip("addr", "add", "192.0.2.77/24", "dev", "eth0")
    pod.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.1")
    shows("192.0.2.77", "addr")
    shows("198.51.100.0", "route")
    pod.ip("link", "del", "eth0")
    eventually(
        lambda: "eth0" not in ctr.exec(name, "ip", "addr").text, "eth0 is gone", timeout=SEEN
    )
    assert pod.links() == {"lo"}


def test_a_link_renamed_resized_and_replaced(ctr: Ctr, pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    name = ctr.start("sleep", "1000", options=in_pod(pod))

    def shows(what: str, link: str) -> None:
        eventually(
            lambda: what in ctr.exec(name, "ip", "addr", "show", "dev", link).text,
            f"{what} of {link}",
            timeout=SEEN,
        )

    pod.ip("link", "set", "eth0", "down")
    pod.ip("link", "set", "eth0", "name", "uplink0", "mtu", "1300", "up")
    shows("mtu 1300", "uplink0")
    shows("192.0.2.2", "uplink0")
    pod.ip("link", "set", "uplink0", "down")
    pod.ip("link", "set", "uplink0", "name", "eth0", "up")
    shows("192.0.2.2", "eth0")
    # Its card was there at boot, and can't be unplugged.
    pod.ip("link", "del", "eth0")
    join_by_veth(pod, world, mac="02:00:00:00:02:03")
    shows("02:00:00:00:02:03", "eth0")
    shows("192.0.2.2", "eth0")
    assert ctr.exec(name, "ping", "-c", "2", "-W", "5", "192.0.2.1").code == 0
    ctr.remove_all()
    assert_untouched(pod)


def test_two_links_each_with_its_routes(ctr: Ctr, pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    pod.ip("link", "add", "net1", "mtu", "9000", "type", "veth", "peer", "name", "w1",
           "mtu", "9000", "netns", world.name)  # fmt: skip
    pod.ip("addr", "add", "203.0.113.2/32", "dev", "net1")
    world.ip("addr", "add", "203.0.113.1/32", "dev", "w1")
    world.ip("link", "set", "w1", "up")
    world.ip("route", "add", "203.0.113.2", "dev", "w1")
    pod.ip("link", "set", "net1", "up")
    # As Calico does it: a gateway that no network of the link holds.
    pod.ip("route", "add", "198.51.100.0/24", "via", "203.0.113.1", "dev", "net1", "onlink")
    world.ip("addr", "add", "198.51.100.1/32", "dev", "lo")
    name = ctr.start("sleep", "1000", options=in_pod(pod))
    assert "mtu 9000" in ctr.exec(name, "ip", "link", "show", "dev", "net1").text
    assert ctr.exec(name, "ping", "-c", "1", "-s", "8900", "-W", "5", "198.51.100.1").code == 0
    assert ctr.exec(name, "ping", "-c", "1", "-W", "5", "192.0.2.1").code == 0


@pytest.mark.parametrize(
    "sections",
    [
        '[runtime]\ninternetworking_model = "macvtap"',
        "[hypervisor.qemu]\nnetwork_queues = 2\ndefault_vcpus = 2",
        '[hypervisor.qemu]\nmachine_type = "microvm"\ndisable_block_device_use = true',
        "[hypervisor.qemu]\nrx_rate_limiter_max_rate = 80000000",
    ],
    ids=["macvtap", "two queues", "microvm", "rate"],
)
def test_other_ways_to_connect(
    ctr: Ctr,
    pod: Netns,
    world: Netns,
    configured: Callable[[str], tuple[str, str]],
    sections: str,
) -> None:
    join_by_veth(pod, world)
    name = ctr.start("sleep", "1000", options=[*in_pod(pod), *configured(sections)])
    for target in ("192.0.2.1", "2001:db8::1"):
        assert ctr.exec(name, "ping", "-c", "2", "-W", "5", target).code == 0
    if "queues" in sections:
        assert ctr.exec(name, "ls", "/sys/class/net/eth0/queues").text.count("rx-") == 2
    ctr.remove_all()
    assert_untouched(pod)


def test_no_network_by_configuration(
    ctr: Ctr, pod: Netns, world: Netns, configured: Callable[[str], tuple[str, str]]
) -> None:
    join_by_veth(pod, world)
    option = configured('[runtime]\ninternetworking_model = "none"')
    output = ctr.run("ls", "/sys/class/net", options=[*in_pod(pod), *option])
    assert output.text.split() == ["lo"]
    assert_untouched(pod)


def test_the_hosts_network_is_refused_or_left_out(
    ctr: Ctr, configured: Callable[[str], tuple[str, str]]
) -> None:
    output = ctr.run("true", options=["--net-host"])
    assert output.code != 0
    assert "host_network = 'none'" in output.error
    option = configured('[katapy]\nhost_network = "none"')
    output = ctr.run("ls", "/sys/class/net", options=["--net-host", *option])
    assert output.code == 0, output.error
    assert output.text == "lo"


def test_the_hosts_network_through_sockets_of_the_host(
    ctr: Ctr, world: Netns, configured: Callable[[str], tuple[str, str]]
) -> None:
    """The daemon's own network is the host's here; it has a loopback for sure."""
    packages = versions.obtain("slirp4netns", "bookworm", fetch_slirp4netns)
    program = packages.program("/usr/bin/slirp4netns")
    option = configured(f'[katapy]\nhost_network = "proxy"\nslirp4netns = "{program}"')
    name = ctr.start("sleep", "1000", options=["--net-host", *option])
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(SEEN)
        got = pool.submit(take_all, listener)
        # The host's loopback is the gateway's address, as slirp4netns has it.
        sent = ctr.exec(name, "sh", "-c", f"echo out | nc 10.0.2.2 {listener.getsockname()[1]}")
        assert sent.code == 0, sent.error
        assert got.result(SEEN) == hashlib.sha256(b"out\n").hexdigest()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]  # free again in a moment
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(ctr.exec, name, "nc", "-l", "-p", str(port))
        sock = eventually(lambda: dial_host(port), "the port at the host", timeout=SEEN)
        assert sock is not None
        with sock:
            sock.sendall(b"in\n")
        assert told.result(SEEN).text == "in"
    eventually(lambda: is_refused(port), "the port is free again", timeout=SEEN)


def is_refused(port: int) -> bool:
    sock = dial_host(port)
    if sock is not None:
        sock.close()
    return sock is None


def dial_host(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), 5)
    except ConnectionRefusedError:
        return None


def test_a_directly_attached_tap(
    ctr: Ctr, world: Netns, tmp_path: Path, configured: Callable[[str], tuple[str, str]]
) -> None:
    world.ip("tuntap", "add", "dtap0", "mode", "tap")
    world.ip("addr", "add", "192.0.2.1/24", "dev", "dtap0")
    world.ip("link", "set", "dtap0", "up")
    interface = {"ip_addresses": ["192.0.2.2/24"], "mtu": 1400}
    device = {
        "name": "eth0",
        "guest_mac": "02:00:00:00:00:aa",
        "device": {"type": "host-tap", "tap_name": "dtap0"},
        "network_info": {"interface": interface, "routes": [{"dest": "", "gateway": "192.0.2.1"}]},
    }
    name = ctr.new_id()
    document = {"netns": world.path, "devices": [device]}
    (tmp_path / f"{name}.json").write_text(json.dumps(document))
    option = configured(f'[runtime]\ndan_conf = "{tmp_path}"')
    ctr.start("sleep", "1000", name=name, options=option)
    assert ctr.exec(name, "ping", "-c", "2", "-W", "5", "192.0.2.1").code == 0
    assert "default via 192.0.2.1" in ctr.exec(name, "ip", "route").text
    ctr.remove_all()
    assert world.links() == {"lo", "dtap0"}


def test_a_directly_attached_daemon(
    ctr: Ctr, pod: Netns, world: Netns, tmp_path: Path, configured: Callable[[str], tuple[str, str]]
) -> None:
    """A card that passt serves over vhost-user, by sockets of a namespace of its own."""
    qemu = versions.obtain("QEMU of trixie", "trixie", lambda: fetch_qemu("trixie"))
    packages = versions.obtain("passt", "trixie", fetch_passt)
    join_by_veth(pod, world)
    folder = Path(tempfile.mkdtemp(prefix="passt-"))  # a socket's path is short
    path = folder / "sock"
    command = [str(packages.program("/usr/bin/passt")), "--foreground", "--vhost-user"]
    command += ["--runas", "0", "--socket-path", str(path), "--no-map-gw", "--one-off"]
    name = ctr.new_id()
    device = {
        "name": "eth0",
        "guest_mac": "02:00:00:00:00:aa",
        "device": {"type": "vhost-user", "path": str(path), "queue_num": 1, "queue_size": 512},
        "network_info": {
            "interface": {"ip_addresses": ["192.0.2.2/24"], "mtu": 1400},
            "routes": [{"dest": "", "gateway": "192.0.2.1"}],
        },
    }
    (tmp_path / f"{name}.json").write_text(json.dumps({"devices": [device]}))
    program = qemu.program("/usr/bin/qemu-system-x86_64")
    option = configured(
        f'[runtime]\ndan_conf = "{tmp_path}"\n[hypervisor.qemu]\npath = "{program}"'
    )
    refused = ctr.run("true", name=name, options=option)
    assert f"no vhost-user daemon listens at {path} for eth0" in refused.error
    passt = pod.popen(*command, stderr=subprocess.DEVNULL)
    try:
        eventually(path.is_socket, "passt's socket", timeout=SEEN)
        ctr.start("sleep", "1000", name=name, options=option)
        with world.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("192.0.2.1", 7000))
            listener.listen()
            data = ctr.exec(name, "sh", "-c", "head -c 8000000 /dev/urandom > /tmp/data")
            assert data.code == 0, data.error
            with ThreadPoolExecutor(1) as pool:
                got = pool.submit(take_all, listener)
                line = "sha256sum < /tmp/data; nc 192.0.2.1 7000 < /tmp/data"
                sent = ctr.exec(name, "sh", "-c", line)
                assert sent.code == 0, sent.error
                assert sent.text.split()[0] == got.result(SEEN)
        shown = ctr.exec(name, "ip", "addr", "show", "dev", "eth0").text
        assert "mtu 1400" in shown
        assert "02:00:00:00:00:aa" in shown
        ctr.remove_all()
        assert passt.wait(SEEN) == 0  # its only client has gone
    finally:
        passt.kill()
        passt.wait()
        shutil.rmtree(folder)
    assert pod.links() == {"lo", "eth0"}


@pytest.mark.core
def test_shim_killed(ctr: Ctr, pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    name = ctr.start("sleep", "1000", options=["--null-io", *in_pod(pod)])
    kill_process(shim_of(ctr, name))
    eventually(lambda: pod.links() == {"lo", "eth0"}, "the tap is gone", timeout=SEEN)
    eventually(lambda: "ingress" not in pod.run("tc", "qdisc"), "the qdisc", timeout=SEEN)
    ctr.remove_all()
    # The namespace serves the next one.
    output = ctr.run("ping", "-c", "1", "-W", "5", "192.0.2.1", options=in_pod(pod))
    assert output.code == 0


def test_a_namespace_in_use_is_refused(ctr: Ctr, pod: Netns, world: Netns) -> None:
    join_by_veth(pod, world)
    name = ctr.start("sleep", "1000", options=in_pod(pod))
    output = ctr.run("true", options=in_pod(pod))
    assert output.code != 0
    assert "another pod or runtime uses this network namespace" in output.error
    assert ctr.exec(name, "ping", "-c", "1", "-W", "5", "192.0.2.1").code == 0


def test_cni_plugins_called_between_create_and_start(
    ctr: Ctr, world: Netns, tmp_path: Path
) -> None:
    """As ``ctr run --cni``, nerdctl and Docker do it; they know their own paths only."""
    plugins = versions.obtain("CNI plugins", "bookworm", fetch_cni_plugins)
    network = {
        "cniVersion": "0.4.0",
        "name": "katapy",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "br0",
                "isGateway": True,
                "ipam": {
                    "type": "host-local",
                    "subnet": "192.0.2.0/24",
                    "dataDir": str(tmp_path / "addresses"),
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    (tmp_path / "net.conflist").write_text(json.dumps(network))
    argv = ctr.run_command(
        ctr.new_id(), "sh", "-c", "ip addr show dev eth0; ping -c 1 -W 5 192.0.2.1",
        options=["--rm", "--cni"],
    )  # fmt: skip
    own_paths = (
        "set -e; mount -t tmpfs tmpfs /opt; mount -t tmpfs tmpfs /etc; mkdir -p /opt/cni "
        f"/etc/cni/net.d; ln -s {plugins.program('/usr/lib/cni')} /opt/cni/bin; "
        f'cp {tmp_path}/net.conflist /etc/cni/net.d/; exec "$@"'
    )
    prefix = ["ip", "netns", "exec", world.name, "unshare", "--mount", "sh", "-c", own_paths, "sh"]
    output = ctr.finish([*prefix, *argv], timeout=RUN_TIMEOUT)
    assert output.code == 0, output.error + output.text
    assert "inet 192.0.2.2/24" in output.text
    assert "1 packets received" in output.text
