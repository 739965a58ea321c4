"""Which of the two is the container's."""

from __future__ import annotations

import argparse

import pytest

from shim.cli import cp
from shim.errors import InvalidArgument


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cp.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        ("a", "b"),
        ("c:/a", "d:/b"),
        ("c:relative", "b"),
        ("./c:/a", "b"),
        ("/c:/a", "-"),
        (":/a", "b"),
    ],
)
def test_one_is_a_path_of_a_container(words: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="container"):
        cp.run(parse(*words))
