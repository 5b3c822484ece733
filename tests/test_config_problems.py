"""Everything wrong with a model section in one go, each with the line of its own item."""

from pathlib import Path

import pytest

from retlab.config import load_config
from retlab.errors import UserError


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    file = folder / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    return [line.removeprefix(f"{file}:") for line in str(caught.value).splitlines()]


def test_errors_in_blocks_name_the_line_of_the_item(tmp_path: Path) -> None:
    text = """model:
  architecture: hybrid
  hidden_size: 64
  blocks:
    - {name: retention, num_heads: 4}
    - {name: retntion}
    - name: glu
      width: 3
      activation: swish
    - {name: attention, num_heads: 3}
    - name: attention
      num_heads: four
    - {num_heads: 3}
    - {name: dilated_attention, num_heads: 3, segment_lengths: [8, 4], dilation_ratios: [1, 2]}
"""
    found = problems(tmp_path, text)
    starts = [
        "6: model.blocks.1.name: There is no block named 'retntion'",
        "8: model.blocks.2.width: The block 'glu' has no setting 'width'",
        "9: model.blocks.2.activation: The activation must be one of",
        "10: model.blocks.3.num_heads: The number of heads (3) must divide the hidden size (64)",
        "12: model.blocks.4.num_heads: num_heads of the block 'attention' must be a whole number, not 'four'",
        "13: model.blocks.5: Every entry of blocks needs the name",
        "14: model.blocks.6.num_heads: The number of heads (3) must divide the hidden size (64)",
        "14: model.blocks.6.segment_lengths: segment_lengths [8, 4] must increase",
    ]
    assert len(found) == len(starts), found
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start), line


def test_a_block_of_another_width_of_the_model_names_the_block(tmp_path: Path) -> None:
    text = "model:\n  architecture: hybrid\n  hidden_size: 30\n  blocks:\n    - {name: glu}\n    - {name: attention}\n"
    (found,) = problems(tmp_path, text)
    assert found.startswith("6: model.blocks.1: The number of heads (4) must divide the hidden size (30)")
    (found,) = problems(tmp_path, text, "model.blocks.1.num_heads=7")
    assert found.startswith(
        "command line (model.blocks.1.num_heads=7): model.blocks.1.num_heads: The number of heads (7)"
    )


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        (
            # A wrong type beside values that do not fit each other.
            "model:\n  dropout: much\n  hidden_size: 64\n  num_attention_heads: 3\n  value_size: 31\n  chunk_size: 0\n",
            ["2: model.dropout", "4: model.num_attention_heads", "5: model.value_size", "6: model.chunk_size"],
        ),
        (
            # What depends on a wrong value is not known.
            "model:\n  hidden_size: wide\n  num_attention_heads: 3\n",
            ["2: model.hidden_size: found 'wide'"],
        ),
        (
            # Nor what depends on a misspelt key.
            "model:\n  hiden_size: 30\n  num_attention_heads: 5\n",
            ["2: model.hiden_size: unknown key"],
        ),
        (
            # The limit of another section holds beside a mistake, and not where it is the mistake.
            "model:\n  max_position_embeddings: 8192\n  dropout: 2\ndata: {sequence_length: 9000}\n",
            ["3: model.dropout", "4: data.sequence_length: found 9000, longer than model.max_position_embeddings 8192"],
        ),
        (
            "model:\n  max_position_embeddings: 8192\n  dropout: 2\ndata: {sequence_length: 4096}\n",
            ["3: model.dropout"],
        ),
        (
            "model:\n  max_position_embeddings: long\ndata: {sequence_length: 9000}\n",
            ["2: model.max_position_embeddings"],
        ),
        (
            "model:\n  architecture: longnet\n  hidden_size: 60\n  num_attention_heads: 7\n"
            "  segment_lengths: [8, 4]\n  dilation_ratios: [2, 0, 1]\n",
            ["4: model.num_attention_heads", "5: model.segment_lengths: segment_lengths [8, 4] must increase",
             "5: model.segment_lengths: segment_lengths [8, 4] and dilation_ratios [2, 0, 1] must be lists of the same",
             "6: model.dilation_ratios: dilation_ratios [2, 0, 1] must be whole numbers of at least 1"],
        ),
        (
            # A number that is none of the kind needs not increase as well.
            "model:\n  architecture: longnet\n  segment_lengths: [32, 64, 0]\n  dilation_ratios: [1, 2, 4]\n",
            ["3: model.segment_lengths: segment_lengths [32, 64, 0] must be whole numbers of at least 1"],
        ),
        (
            "model:\n  architecture: hybrid\n  layers: 3\n  dropout: 2\n  blocks:\n    - {name: glu, width: 2}\n"
            "train:\n  batch_size: 3\n  devices: 2\n  learning_rate: fast\n",
            ["3: model.layers", "4: model.dropout", "6: model.blocks.0.width", "8: train.batch_size",
             "10: train.learning_rate"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_hides_no_other_and_makes_up_none(tmp_path: Path, text: str, starts: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(starts), found
    for start in starts:
        assert sum(line.startswith(start) for line in found) == 1, (start, found)


def test_a_batch_that_processes_do_not_divide_says_what_to_take(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "train: {batch_size: 7, devices: 3}\n")
    assert "found 7, which the 3 processes of train.devices do not divide; take 6 or 9, or other devices" in found
    (found,) = problems(tmp_path, "train: {batch_size: 2, devices: 3}\n")
    assert "; take 3, or other devices" in found
    (found,) = problems(tmp_path, "train: {batch_size: 10, micro_batch_size: 4}\n")
    assert "; take 8 or 12, or another micro_batch_size" in found
