from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidArgument
from shim.storage import options as o
from shim.storage.options import IdMap, Owners, parse_options

SET = {
    "bind": 0x1000,
    "rbind": 0x5000,
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "remount": 32,
    "mand": 64,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
}
CLEAR = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "async": "sync",
    "nomand": "mand",
    "atime": "noatime",
    "diratime": "nodiratime",
    "norelatime": "relatime",
    "nostrictatime": "strictatime",
}
PROPAGATION = ["private", "rprivate", "slave", "rslave"]
PROPAGATION += ["shared", "rshared", "unbindable", "runbindable"]


@pytest.mark.parametrize(("word", "flag"), SET.items())
def test_a_word_sets_its_flag(word: str, flag: int) -> None:
    assert parse_options([word]) == o.MountOptions(flags=flag)


@pytest.mark.parametrize(("word", "opposite"), CLEAR.items())
def test_a_word_clears_the_flag_of_its_opposite(word: str, opposite: str) -> None:
    assert parse_options([opposite, word]).flags == 0
    assert parse_options([word, opposite]).flags == SET[opposite]


def test_defaults_and_empty_words_say_nothing() -> None:
    assert parse_options(["defaults", ""]) == o.MountOptions()


def test_propagation_words_are_calls_of_their_own_in_order() -> None:
    parsed = parse_options(["rslave", "rshared", "ro"])
    assert parsed.propagation == (o.MS_SLAVE | o.MS_REC, o.MS_SHARED | o.MS_REC)
    assert parsed.flags == o.MS_RDONLY
    assert not parsed.data


def test_the_rest_is_data() -> None:
    parsed = parse_options(["index=off", "ro", "lowerdir=/a:/b", 'context="x,y"'])
    assert parsed.data == ("index=off", "lowerdir=/a:/b", 'context="x,y"')


def test_loop_and_direct_io() -> None:
    parsed = parse_options(["loop", "direct-io", "ro"])
    assert (parsed.loop, parsed.direct_io, parsed.read_only) == (True, True, True)
    with pytest.raises(InvalidArgument, match="loop"):
        parse_options(["direct-io"])


def test_id_maps() -> None:
    parsed = parse_options(["uidmap=0:1000:10,10:5000:1", "gidmap=0:2000:10"])
    assert parsed.uid_map == (IdMap(0, 1000, 10), IdMap(10, 5000, 1))
    assert parsed.gid_map == (IdMap(0, 2000, 10),)


@pytest.mark.parametrize(
    "option",
    ["uidmap=", "uidmap=0:1", "gidmap=0:1:x", "uidmap=0:1:-2", "X-containerd.mkdir.path=/a"],
)
def test_what_cannot_be_honoured_is_refused_by_name(option: str) -> None:
    with pytest.raises(InvalidArgument, match=option.replace(".", r"\.")):
        parse_options(["ro", option])


words = st.sampled_from([*SET, *CLEAR, *PROPAGATION, "defaults", "loop"])
pairs = st.builds(
    "{}={}".format, st.sampled_from(["lowerdir", "a", "size"]), st.text("ab:/\\", max_size=8)
)


@given(st.lists(words | pairs, max_size=12))
def test_every_option_ends_up_in_one_place(given_options: list[str]) -> None:
    parsed = parse_options(given_options)
    assert list(parsed.data) == [option for option in given_options if "=" in option]
    assert len(parsed.propagation) == sum(option in PROPAGATION for option in given_options)
    assert parsed.loop == ("loop" in given_options)
    expected = 0
    for option in given_options:
        if option in SET:
            expected |= SET[option]
        elif option in CLEAR:
            expected &= ~SET[CLEAR[option]]
    assert parsed.flags == expected


@given(st.lists(words, max_size=8))
def test_the_last_word_on_read_only_wins(given_options: list[str]) -> None:
    last = next((option for option in reversed(given_options) if option in ("ro", "rw")), "rw")
    assert parse_options(given_options).read_only == (last == "ro")


def test_owners_are_mapped_by_their_ranges() -> None:
    owners = Owners((IdMap(0, 70000, 10), IdMap(100, 5, 1)), (IdMap(0, 80000, 1),))
    assert [owners.uid(number) for number in (0, 9, 10, 100)] == [70000, 70009, 10, 5]
    assert [owners.gid(number) for number in (0, 1)] == [80000, 1]
