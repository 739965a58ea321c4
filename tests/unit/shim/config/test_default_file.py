"""deploy/config.toml shows every key with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from shim.config.hypervisors import HYPERVISORS
from shim.config.load import load_config
from shim.config.model import SECTIONS, Config, Runtime

ROOT = Path(__file__).parents[4]
FILE = ROOT / "deploy/config.toml"
EVERY_KEY = {f"{name}.{f.name}" for name, model in SECTIONS.items() for f in fields(model)}


def test_as_shipped_it_changes_nothing() -> None:
    config = load_config(search=(FILE,), environ={})
    assert config == Config()
    assert not config.origins


def test_uncommented_it_states_every_key_and_its_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = re.sub(r"^#(?=[\[a-z])", "", FILE.read_text(), flags=re.MULTILINE)
    for model in HYPERVISORS:
        # Of the hypervisors' sections one applies.
        named = f'hypervisor_name = "{model.name}"'
        file.write_text(text.replace('hypervisor_name = ""', named))
        config = load_config(search=(file,), environ={})
        assert set(config.origins) == EVERY_KEY
        runtime = Runtime(hypervisor_name=model.name)
        assert config == Config(hypervisor=model(), runtime=runtime)
        assert len(config.warnings) == len(HYPERVISORS) - 1


def test_the_reference_describes_every_key() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    described = set()
    for section, body in re.findall(r"^### `\[(\S+)\]`\n(.*?)(?=^#|\Z)", text, re.M | re.S):
        described |= {f"{section}.{name}" for name in re.findall(r"^\| `(\w+)` \|", body, re.M)}
    assert described == EVERY_KEY
