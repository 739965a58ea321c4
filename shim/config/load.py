"""Read the configuration: main file, drop-in directory, runtime option.

Standard library only, for the VMM is started from it before trio is imported; the
TOML parser is imported only when there is something to parse.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shim.config.hypervisors import NAMES, AnyHypervisor, Qemu
from shim.config.kata_keys import ALIASES, NOT_YET, SECTION_ALIASES, SECTIONS_NOT_YET
from shim.config.model import SECTIONS, Config
from shim.config.rules import Refused, rule_of
from shim.errors import ConfigError

SEARCH_PATHS = (Path("/etc/katapy/config.toml"), Path("/opt/katapy/config.toml"))
"""Where the main file is looked for; the first that exists, or has drop-ins, counts."""

FILE_VARIABLE = "KATAPY_CONF_FILE"
"""Environment variable that names the main file when the runtime option does not."""

OPTION_SOURCE = "runtime option config_body"

_FILE_MAX = 1 << 20
_NESTED = ("hypervisor", "agent")
_OPTIONS = ("runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options")
_RUNC_OPTIONS = "containerd.runc.v1.Options"
# What ctr sends for a container with a user namespace, whatever its runtime.
_OLD_RUNC_OPTIONS = "containerd.linux.runc.CreateOptions"
# containerd's CRI plugin puts its whole option table into config_body, and these are
# the keys of that table that it reads itself.
_OPTION_TABLE_KEYS = frozenset({"typeurl", "configpath", "configbody"})


def load_config(
    options: tuple[str, bytes] | None = None,
    *,
    search: Sequence[Path] = SEARCH_PATHS,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration that applies to a sandbox.

    The main file is the runtime option's config_path, else the environment's
    ``KATAPY_CONF_FILE``, else the first of ``search``; without any, the defaults hold.
    Over it come ``config.d/*.toml`` beside it in the order of their names, then the
    runtime option's config_body. Of a key that is set more than once the last counts.

    ``options`` is the runtime option Any as (type URL, value): ``runtimeoptions.v1.Options``
    is read, ``containerd.runc.v1.Options`` has nothing for us (containerd runtime v2
    README; contract §1.4). ``environ`` defaults to the process's environment.

    Raises ConfigError naming the file, the key, the value and what is accepted; also for
    a named file that cannot be read, for an unknown key, and for a runtime option of
    another type.
    """
    environ = os.environ if environ is None else environ
    merged = _Merged()
    named, body = _decode_options(options)
    if not named and environ.get(FILE_VARIABLE):
        named = environ[FILE_VARIABLE]
    for file in _files(named, search):
        merged.add(str(file), _parse(str(file), _read(file)))
    if body:
        table = _parse(OPTION_SOURCE, body)
        for name in [n for n in table if n.replace("_", "").lower() in _OPTION_TABLE_KEYS]:
            del table[name]
        merged.add(OPTION_SOURCE, table)
    return merged.config()


@dataclass(slots=True)
class _Merged:
    """The layers read so far, flattened to one value a key."""

    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {s: {} for s in SECTIONS})
    origins: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hypervisors: dict[str, str] = field(default_factory=dict)

    def add(self, source: str, document: dict[str, Any]) -> None:
        """Check one document against the model and lay it over what is there."""
        self.sources.append(source)
        for section, table in _sections(source, document):
            if section in SECTIONS_NOT_YET:
                self.warnings.append(f"{source}: [{section}] has no effect")
                continue
            if section.startswith("hypervisor."):
                self.hypervisors[section] = source
            rules = {f.name: rule_of(f.metadata) for f in fields(SECTIONS[section])}
            for written, value in table.items():
                name = ALIASES.get(f"{section}.{written}", written)
                if name not in rules:
                    self._foreign(source, section, name, value, sorted(rules))
                    continue
                try:
                    self.values[section][name] = rules[name].convert(value)
                except Refused:
                    raise _wrong(source, section, written, value, rules[name].accepts) from None
                self.origins[f"{section}.{name}"] = source

    def config(self) -> Config:
        """Build the model, or raise ConfigError when values contradict each other."""
        config = Config(
            hypervisor=self._hypervisor(),
            agent=SECTIONS["agent.kata"](**self.values["agent.kata"]),
            runtime=SECTIONS["runtime"](**self.values["runtime"]),
            katapy=SECTIONS["katapy"](**self.values["katapy"]),
            sources=tuple(self.sources),
            origins=dict(self.origins),
            warnings=tuple(self.warnings),
        )
        check(config)
        return config

    def _hypervisor(self) -> AnyHypervisor:
        """Return the section of the hypervisor that pods get.

        ``hypervisor_name`` decides (as in runtime-rs), else the section that is there (as
        in Kata's Go runtime), else it is QEMU.
        """
        named = self.values["runtime"].get("hypervisor_name", "")
        if named:
            chosen = f"hypervisor.{NAMES[named]}"
        elif len(self.hypervisors) > 1:
            given = ", ".join(f"[{section}]" for section in sorted(self.hypervisors))
            source = list(self.hypervisors.values())[-1]
            raise ConfigError(
                f"{source}: there are {given}: [runtime] hypervisor_name must say which counts"
            )
        else:
            chosen = next(iter(self.hypervisors), "hypervisor.qemu")
        for section, source in self.hypervisors.items():
            if section != chosen:
                self.warnings.append(
                    f"{source}: [{section}] has no effect: hypervisor_name is {named!r}"
                )
        model: AnyHypervisor = SECTIONS[chosen](**self.values[chosen])
        return model

    def _foreign(
        self, source: str, section: str, name: str, value: object, known: list[str]
    ) -> None:
        inert = NOT_YET[section].get(name, ())
        if name in NOT_YET[section]:
            if inert is not None and value not in inert:
                self.warnings.append(f"{source}: [{section}] {name} has no effect")
            return
        raise ConfigError(f"{source}: [{section}] {name} is not a key{_meant(name, known)}")


def _sections(source: str, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, table in document.items():
        nested = table.items() if name in _NESTED and isinstance(table, dict) else [("", table)]
        for second, inner in nested:
            section = f"{name}.{second}" if second else name
            section = SECTION_ALIASES.get(section, section)
            if section not in SECTIONS and section not in SECTIONS_NOT_YET:
                meant = _meant(section, sorted(SECTIONS))
                raise ConfigError(f"{source}: {section} is not a section{meant}")
            if not isinstance(inner, dict):
                raise _wrong(source, "", section, inner, f"a table, [{section}]")
            yield section, inner


def check(config: Config) -> None:
    """Raise ConfigError when values of a configuration contradict each other."""
    vm = config.hypervisor
    for low, high, unit in (
        ("default_vcpus", "default_maxvcpus", "vCPUs"),
        ("default_memory", "default_maxmemory", "MiB"),
    ):
        least, most = getattr(vm, low), getattr(vm, high)
        if most and least > most:
            source = config.origins[f"{vm.section}.{high}"]
            accepts = f"0 for the host's, or at least {low}, which is {least:g} {unit}"
            raise _wrong(source, vm.section, high, most, accepts)
    native = isinstance(vm, Qemu) and vm.block_device_aio == "native"
    if native and not vm.block_device_cache_direct:
        source = config.origins[f"{vm.section}.block_device_aio"]
        accepts = "native together with block_device_cache_direct = true, as QEMU wants it"
        raise _wrong(source, vm.section, "block_device_aio", "native", accepts)


def _wrong(source: str, section: str, name: str, value: object, accepts: str) -> ConfigError:
    where = f"[{section}] " if section else ""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ConfigError(f"{source}: {where}{name} = {shown}: accepted is {accepts}")


def _meant(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _files(named: str, search: Sequence[Path]) -> list[Path]:
    """List the files to read, in order."""
    if named:
        main = Path(named)
        if not main.is_absolute():
            raise ConfigError(f"configuration file {named!r}: accepted is an absolute path")
        return [main, *_drop_ins(main)]
    for main in search:
        files = [main] if main.exists() else []
        files += _drop_ins(main)
        if files:
            return files
    return []


def _drop_ins(main: Path) -> list[Path]:
    directory = main.parent / "config.d"
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from error
    return [directory / n for n in names if n.endswith(".toml") and not n.startswith(".")]


def _read(file: Path) -> bytes:
    try:
        with open(file, "rb", opener=_open) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"{file}: cannot be read: not a regular file")
            data = stream.read(_FILE_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    if len(data) > _FILE_MAX:
        raise ConfigError(f"{file}: larger than {_FILE_MAX >> 20} MiB, not a configuration file")
    return data


def _open(file: str, flags: int) -> int:
    # Non-blocking, for a FIFO in the file's place must not hold a start for ever.
    return os.open(file, flags | os.O_NONBLOCK)


def _parse(source: str, data: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{source}: not a configuration: nested too deeply") from None


def check_option_type(type_url: str) -> str:
    """Return the message name of a runtime option, "" for none.

    Raises ConfigError for a type that means nothing here: whoever set it expects
    something of it.
    """
    name = type_url.rsplit("/", 1)[-1]
    # An Any without a type is how "no options" looks from some clients.
    if name in ("", _RUNC_OPTIONS, _OLD_RUNC_OPTIONS, *_OPTIONS):
        return name
    raise ConfigError(
        f"runtime option of type {type_url!r}: accepted is {_OPTIONS[0]} "
        f"(ConfigPath, config_body), and {_RUNC_OPTIONS}"
    )


def _decode_options(options: tuple[str, bytes] | None) -> tuple[str, bytes]:
    """Return config_path and config_body of the runtime option, "" and b"" without them."""
    if options is None:
        return "", b""
    type_url, value = options
    name = check_option_type(type_url)
    if name not in _OPTIONS:
        return "", b""
    from protos import lite
    from protos.tables import containerd_runtime_options as tables

    try:
        decoded = lite.decode(tables.Options, value)
    except ValueError as error:
        raise ConfigError(f"runtime option is not a {name} message: {error}") from error
    return decoded["config_path"], decoded["config_body"]
