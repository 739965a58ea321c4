"""A pod's namespace and the world's, made for one test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.support.pod_netns import Netns, new_netns


@pytest.fixture
def pod() -> Iterator[Netns]:
    with new_netns(f"ktn{secrets.token_hex(3)}-pod") as netns:
        yield netns


@pytest.fixture
def world() -> Iterator[Netns]:
    with new_netns(f"ktn{secrets.token_hex(3)}-world") as netns:
        yield netns
