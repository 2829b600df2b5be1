"""An index gives back each sample's place, however it is spaced, and says what is wrong when that is read."""

import json
from dataclasses import replace

import pytest
from inflate3d.data.shards.index import Member, PackedIndex, ShardIndex
from inflate3d.errors import InputError


def test_an_open_index_reads_what_was_written_however_it_is_spaced() -> None:
    members = [
        [Member("json", 0, 9, "0" * 16), Member('a"]],["b', 512, 7, "f" * 16)],
        [],
        [Member("x", 600, 0, "1" * 16)],
    ]
    samples = list(zip(['k"]],["1', "empty", "\u00e4/2"], members, strict=True))
    index = ShardIndex(samples, 1024, "a" * 64)
    turned = dict(reversed(json.loads(index.encoded).items()))
    for content in (index.encoded, json.dumps(turned, indent=1).encode()):
        opened = PackedIndex(content, where="here")
        assert [opened.sample(i)[0] for i in range(len(opened))] == [key for key, _ in samples]
        found = [[(*m[:3], f"{m[3]:016x}") for m in opened.members(i)] for i in range(3)]
        assert found == [[tuple(m) for m in row] for row in members]
    assert len(PackedIndex(replace(index, samples=[]).encoded, where="here")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "inflate3d-index/9"}, "not an index of format"),
        ({"records": ["{}"]}, "1 records for 2 samples"),
        ({"samples": [["a", [["json", 0, 9, "0"]]], ["b", [["json", 0, 2000, "0"]]]]}, "lies outside its tar"),
        ({"samples": [["a", []], ["b", [["json", 0, 9, "0"], ["x", 5, 9, "0"]]]]}, "overlaps another"),
        ({"samples": [["a", []], ["b", [["json", 0]]]]}, "damaged index"),
    ],
)
def test_what_is_wrong_with_an_index_is_told_when_it_is_read(change: dict, message: str) -> None:
    index = ShardIndex([("a", []), ("b", [])], 1024, "a" * 64)
    content = json.dumps({**json.loads(index.encoded), **change}).encode()
    with pytest.raises(InputError, match=f"here: .*{message}"):
        PackedIndex(content, where="here").sample(1)
    with pytest.raises(InputError, match=f"here: .*{message}"):
        ShardIndex.decode(content, where="here")
