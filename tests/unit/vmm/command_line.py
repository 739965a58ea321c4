"""A QEMU command line, made as the backend makes it, that tests ask for its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmm.qemu import command
from vmm.qemu.accel import Accelerator
from vmm.qemu.plan import make_plan
from vmm.qemu.probe import QemuFeatures, parse
from vmm.spec import VmSpec

TCG = Accelerator("tcg")
KVM = Accelerator("kvm")


def features(version: str = "7.2") -> QemuFeatures:
    return parse((Path(__file__).parent / "recorded" / f"qemu-{version}.jsonl").read_bytes())


class Line:
    """A command line that can be asked for its options."""

    def __init__(
        self,
        spec: VmSpec,
        *,
        accelerator: Accelerator = TCG,
        version: str = "7.2",
        qemu: QemuFeatures | None = None,
        tsc_khz: int = 2_400_000,
    ) -> None:
        self.plan = make_plan(spec)
        ports = {name: 12 + n for n, name in enumerate(command.serial_ids(self.plan))}
        self.argv = command.build(
            spec,
            self.plan,
            binary=Path("/usr/bin/qemu"),
            features=qemu or features(version),
            accelerator=accelerator,
            listeners=command.Listeners(
                10, 11 if spec.console else None, ports, 30 if spec.extra_monitor else None
            ),
            tsc_khz=tsc_khz,
        )

    def values(self, option: str) -> list[str]:
        return [b for a, b in zip(self.argv, self.argv[1:], strict=False) if a == option]

    def value(self, option: str) -> str:
        (value,) = self.values(option)
        return value

    def objects(self, option: str) -> list[dict[str, Any]]:
        return [json.loads(value) for value in self.values(option) if value.startswith("{")]

    def device(self, driver: str) -> dict[str, Any]:
        (found,) = [each for each in self.objects("-device") if each["driver"] == driver]
        return found
