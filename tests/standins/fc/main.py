"""The stand-in for the ``firecracker`` program."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from tests.standins import settings
from tests.standins.fc.api import SERVER, Api
from tests.standins.fc.controller import Controller
from tests.standins.fc.fault import Fault
from tests.standins.http_dialect import DEFAULT_PAYLOAD_MAX, Request
from tests.standins.server import HttpServer, Loop, listen
from tests.standins.stdin import forward

VERSION_VARIABLE = "KATAPY_STANDIN_FIRECRACKER_VERSION"
DEFAULT_VERSION = "1.16.1"
_DEFAULT_SOCKET = "/run/firecracker.socket"
_EXIT_GENERIC, _EXIT_BAD_CONFIGURATION, _EXIT_ARGUMENTS = 1, 152, 153
_ID_MAX = 64
_PCI = (1, 13)

_OPTIONS = {
    "api-sock": True,
    "id": True,
    "seccomp-filter": True,
    "no-seccomp": False,
    "start-time-us": True,
    "start-time-cpu-us": True,
    "parent-cpu-time-us": True,
    "config-file": True,
    "metadata": True,
    "no-api": False,
    "log-path": True,
    "level": True,
    "module": True,
    "show-level": False,
    "show-log-origin": False,
    "metrics-path": True,
    "boot-timer": False,
    "version": False,
    "help": False,
    "snapshot-version": False,
    "describe-snapshot": True,
    "http-api-max-payload-size": True,
    "mmds-size-limit": True,
    "enable-pci": False,
}

# What a configuration file has, in the order it is applied: key, method, path.
_FILE_ORDER = (
    ("machine-config", "machine-config", None),
    ("logger", "logger", None),
    ("metrics", "metrics", None),
    ("cpu-config", "cpu-config", None),
    ("boot-source", "boot-source", None),
    ("drives", "drives", "drive_id"),
    ("network-interfaces", "network-interfaces", "iface_id"),
    ("pmem", "pmem", "id"),
    ("vsock", "vsock", None),
    ("balloon", "balloon", None),
    ("mmds-config", "mmds/config", None),
    ("entropy", "entropy", None),
    ("memory-hotplug", "hotplug/memory", None),
)


def main(argv: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    version = settings.chosen_version(VERSION_VARIABLE, DEFAULT_VERSION)
    numbers = tuple(int(part) for part in version.split(".")[:3])
    options = {k: v for k, v in _OPTIONS.items() if k != "enable-pci" or numbers >= _PCI}
    try:
        found = settings.parse(argv, options)
        if "no-seccomp" in found and "seccomp-filter" in found:
            raise settings.BadArguments("Argument 'seccomp-filter' forbids 'no-seccomp'")
        if "no-api" in found and "config-file" not in found:
            raise settings.BadArguments("Argument 'config-file' required, but not found.")
    except settings.BadArguments as error:
        print(f"Arguments parsing error: {error}", file=sys.stderr)
        return _EXIT_ARGUMENTS
    if "version" in found:
        print(f"Firecracker v{version}\n")
        return 0
    if "help" in found or "snapshot-version" in found:
        print(f"Firecracker v{version}\n" if "help" in found else "v5.0.0")
        return 0
    instance = found.get("id", ["anonymous-instance"])[0]
    if not 1 <= len(instance) <= _ID_MAX or not all(c.isalnum() or c == "-" for c in instance):
        print(f"Invalid instance ID: {instance}", file=sys.stderr)
        return _EXIT_GENERIC
    return _serve(found, version, instance)


def _serve(found: dict[str, list[str]], version: str, instance: str) -> int:
    loop = Loop()
    controller = Controller(loop, version, instance, pci="enable-pci" in found)
    try:
        if "log-path" in found or "level" in found:
            controller.set_logger(
                {
                    k: found[o][0]
                    for o, k in (("log-path", "log_path"), ("level", "level"))
                    if o in found
                }
            )
        if "metrics-path" in found:
            controller.set_metrics({"metrics_path": found["metrics-path"][0]})
    except Fault as error:
        print(f"Error: {error}", file=sys.stderr)
        return _EXIT_GENERIC
    api = Api(controller, version)
    controller.log("Info", f"Running Firecracker v{version}")
    try:
        if "no-api" not in found:
            path = found.get("api-sock", [_DEFAULT_SOCKET])[0]
            try:
                listener = listen(path)
            except OSError as error:
                print(f"Error: RunWithApi(FailedToBindAndRunHttpServer({error}))", file=sys.stderr)
                return _EXIT_GENERIC
            limit = int(found.get("http-api-max-payload-size", [str(DEFAULT_PAYLOAD_MAX)])[0])
            HttpServer(loop, listener, api.handle, SERVER, limit)
            controller.log("Info", f"Listening on API socket ({path!r}).")
        if "metadata" in found:
            with open(found["metadata"][0]) as file:
                controller.put_mmds(json.load(file))
        if "config-file" in found and not _apply(api, found["config-file"][0]):
            return _EXIT_BAD_CONFIGURATION
        forward(loop, lambda: None if controller.vm is None else controller.vm.qemu)
        return loop.run()
    finally:
        controller.close()


def _apply(api: Api, path: str) -> bool:
    """Configure and start from a file, as if by requests."""
    try:
        with open(path) as file:
            config = json.load(file)
        unknown = set(config) - {key for key, _, _ in _FILE_ORDER}
        if unknown:
            raise ValueError(f"unknown field `{sorted(unknown)[0]}`")
    except (OSError, ValueError) as error:
        print(f"Error: BuildFromJson({error})", file=sys.stderr)
        return False
    requests = []
    for key, where, identity in _FILE_ORDER:
        for part in config.get(key) or () if identity else [config.get(key)]:
            if part is not None:
                target = f"/{where}/{part.get(identity, '')}" if identity else f"/{where}"
                requests.append(Request("PUT", target, json.dumps(part).encode()))
    requests.append(Request("PUT", "/actions", b'{"action_type": "InstanceStart"}'))
    for request in requests:
        response = api.handle(request)
        if response.status >= 400:
            print(f"Error: BuildFromJson({response.body.decode()})", file=sys.stderr)
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
