"""``katapy check``: is this host ready, and what to do if it is not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from shim.cleanup.ledger import state_dir
from shim.cli import guest, host, matrix, vm
from shim.cli.findings import Finding, Level, Probe, collect
from shim.cli.matrix import Vmm
from shim.cli.options import add_config_argument, configuration
from shim.config.model import Config
from shim.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 when something keeps pods from starting."""
    findings = check(arguments.config)
    ready = all(finding.level is not Level.FAIL for finding in findings)
    vmms = matrix.find(_config_or_defaults(arguments.config))
    if arguments.json:
        print(as_json(findings, ready, vmms))
    else:
        print(f"{as_text(findings, ready)}\n\n{matrix.as_text(vmms)}")
    return 0 if ready else 1


def check(config_file: Path | None = None) -> list[Finding]:
    """Look at everything a pod needs from this host.

    Args:
        config_file: the configuration to check for; None for the one that applies.
    """
    findings: list[Finding] = []
    try:
        config = configuration(config_file)
    except ConfigError as error:
        findings.append(Finding("configuration", Level.FAIL, str(error), "correct it"))
        config = Config()
    else:
        text = ", ".join(config.sources) or "defaults, there is no file"
        findings.append(Finding("configuration", Level.OK, text))
        advice = "remove the key, or leave it for Kata"
        findings += [
            Finding("configuration", Level.WARN, warning, advice) for warning in config.warnings
        ]
    probes: Sequence[tuple[str, Probe]] = (
        ("root", host.rights),
        ("accelerator", lambda: vm.accelerator(config)),
        ("hypervisor", lambda: vm.hypervisor(config)),
        ("guest", lambda: guest.guest(config)),
        ("shared directories", lambda: vm.shared_directories(config)),
        ("agent channel", lambda: vm.channel(config)),
        ("memory", lambda: host.memory(config.hypervisor.default_memory)),
        ("cgroups", host.cgroups),
        ("state directory", lambda: host.state_directory(Path(state_dir()))),
        ("loop devices", host.loop_devices),
        ("tun", host.tun),
        ("containerd", host.containerd),
    )
    return findings + collect(probes)


def _config_or_defaults(config_file: Path | None) -> Config:
    try:
        return configuration(config_file)
    except ConfigError:  # one of the findings
        return Config()


def as_json(findings: Sequence[Finding], ready: bool, vmms: list[Vmm] | None = None) -> str:
    """Return a JSON object with ``ready``, ``findings`` and the VMMs' ``capabilities``."""
    lines = [
        {"name": f.name, "level": f.level.value, "text": f.text, "advice": f.advice}
        for f in findings
    ]
    return json.dumps(
        {"ready": ready, "findings": lines, "vmms": matrix.as_json(vmms or [])}, indent=2
    )


def as_text(findings: Sequence[Finding], ready: bool) -> str:
    """Return the findings as aligned lines, with advice below where there is any."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level.value:<4}  {finding.name:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.advice}")
    verdict = "This host can run katapy pods." if ready else "This host can't run katapy pods yet."
    return "\n".join([*lines, "", verdict])
