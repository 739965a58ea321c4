"""``katapy bench``: what a pod costs on this host, beside runc."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from shim.cli.options import add_config_argument, configuration

if TYPE_CHECKING:
    from shim.bench.figures import Figures
    from shim.bench.world import World
    from shim.config.model import Config

_STATE_SECONDS = 2.0
_QUICK_STATE_SECONDS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object with all samples")
    parser.add_argument("--runs", type=int, metavar="N", help="samples of each line (5)")
    parser.add_argument("--pods", type=int, metavar="N", help="pods at once (10)")
    parser.add_argument("--size", type=int, metavar="MIB", help="data through stdout (256)")
    parser.add_argument("--quick", action="store_true", help="two runs, two pods, 16 MiB")
    parser.add_argument(
        "--throughput",
        action="store_true",
        help="shared directory, disk and network alone, beside a bare QEMU",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="give up after so long (%(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 0, or a KatapyError that says what went wrong."""
    from shim.bench.deadline import Deadline
    from shim.bench.figures import RUNC, Figures, as_document, as_table
    from shim.bench.world import running_world

    quick = arguments.quick
    figures = Figures()
    config = configuration(arguments.config)
    other = "qemu" if arguments.throughput else RUNC
    with _terminable(), running_world(arguments.config, Deadline(arguments.timeout)) as world:
        described = {
            "containerd": world.version,
            "runtimes": list(world.runtimes),
            "guest": _guest(config),
        }
        runs = arguments.runs or (2 if quick else 5)
        mib = arguments.size or (16 if quick else 256)
        if arguments.throughput:
            from shim.bench import throughput

            throughput.measure(world, config, figures, runs=runs, mib=mib, say=_say)
        else:
            _measure(
                world,
                config,
                figures,
                runs=runs,
                pods=arguments.pods or (2 if quick else 10),
                mib=mib,
                state_seconds=_QUICK_STATE_SECONDS if quick else _STATE_SECONDS,
            )
    if arguments.json:
        print(json.dumps({**described, "figures": as_document(figures.lines(), other)}, indent=2))
    else:
        print(as_table(figures.lines(), other))
        print(f"\ncontainerd {described['containerd']}; guest: {described['guest']}")
        print(f"The columns are medians; runs of katapy and {other} took turns.")
    return 0


def _measure(
    world: World,
    config: Config,
    figures: Figures,
    *,
    runs: int,
    pods: int,
    mib: int,
    state_seconds: float,
) -> None:
    """Take every sample; runs of the runtimes take turns, so that they share the weather."""
    from shim.bench import boots, containers, shims

    turns = [(number, runtime) for number in range(1, runs + 1) for runtime in world.runtimes]
    with ExitStack() as stack:
        running = {}
        for runtime in world.runtimes:
            # These are also what fills caches before anything is measured.
            _say(f"a container of {runtime}, for what follows")
            running[runtime] = stack.enter_context(containers.started(world, runtime))
        # Before the streams, whose buffers and files stay in the guest's page cache.
        containers.guest_memory(world, running["katapy"], figures)
        for number, runtime in turns:
            _say(f"shim, run {number} of {runs}, {runtime}")
            shims.measure(world, runtime, figures)
        for number, runtime in turns:
            _say(f"exec, streams, calls, run {number} of {runs}, {runtime}")
            container = running[runtime]
            containers.exec_once(world, runtime, container, figures)
            containers.copy_out(world, runtime, container, mib, figures)
            containers.copy_in(world, runtime, container, max(1, mib // 4), figures)
            containers.state_rate(world, runtime, container, state_seconds, figures)
    for number in range(1, runs + 1):
        _say(f"boots of a VM, run {number} of {runs}")
        boots.measure(world, config, figures)
    for number, runtime in turns:
        _say(f"ctr run, run {number} of {runs}, {runtime}")
        containers.run_once(world, runtime, figures)
    for runtime in world.runtimes:
        _say(f"{pods} pods at once, {runtime}")
        containers.pods(world, runtime, pods, figures)


def _guest(config: Config) -> str:
    from shim.pod.vm_plan import choose_machine
    from vmm.image.store import find_image

    kind = config.katapy.guest_kernel
    if config.hypervisor.kernel is not None:
        return f"kernel {config.hypervisor.kernel}"
    image = find_image(config.katapy.cache_dir, None if kind == "auto" else kind)  # type: ignore[arg-type]
    return f"{image.kind} kernel {image.kernel_release}, {choose_machine(config)}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C, so that everything is taken away."""
    import signal

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
