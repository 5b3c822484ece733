import pytest

from retlab.differences import differences

BLOCKS = [{"name": "retention", "num_heads": 2}, {"name": "glu", "intermediate_size": 32}]


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (
            {"a": {"b": 1, "c": None}, "same": 2},
            {"a": {"b": 2, "c": True}, "same": 2},
            ["a.b: 1 -> 2", "a.c: null -> true"],
        ),
        (
            {"blocks": BLOCKS},
            {"blocks": [BLOCKS[0], {"name": "glu", "intermediate_size": 48}]},
            ["blocks.1.intermediate_size: 32 -> 48"],
        ),
        ({"blocks": BLOCKS}, {"blocks": BLOCKS[1:]}, ["blocks: [retention, glu] -> [glu]"]),
        ({"shards": "0" * 64}, {"shards": "1" * 64}, ["shards: changed"]),
        ({"betas": [0.9, 0.95]}, {"betas": [0.9, 0.99]}, ["betas: [0.9, 0.95] -> [0.9, 0.99]"]),
    ],
)
def test_only_what_differs_is_named_in_the_words_of_a_configuration(before, now, found):
    assert list(differences(before, now)) == found
    assert list(differences(now, now)) == []
