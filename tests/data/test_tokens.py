"""Token shards: the tokens of the tokenizer called once per document, whatever the pieces, workers and lots."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.text_files import write_split
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from retlab.artifacts import sha256_file
from retlab.data import encoding, tokens
from retlab.data.pieces import can_be_cut, encode_word, pieces, tried_pieces
from retlab.data.settings import DataSection, TokenizerSection
from retlab.data.tokenizer import load_tokenizer, make_tokenizer
from retlab.data.tokens import tokenise
from retlab.data.word_memo import WordMemo
from retlab.errors import UserError

WORDS = [
    *"ab's \né中1²_!😀e",
    "\x00",
    "\u0301",
    "  ",
    "\t",
    "\r\n",
    "👩\u200d👧",
    "<eos>",
    "the",
    "return",
    "\u3000",
    "\x85",
]
WORDS += ["\u3000", "\x85", "\x1c", "'r", "'re", "ab", "abc"]
# Letters of new versions of Unicode, which not every library knows.
WORDS += ["\u088f", "\U000323b0"]


def sample_texts(count: int, seed: int = 0) -> list[str]:
    chooser = random.Random(seed)
    return ["".join(chooser.choices(WORDS, k=chooser.randrange(1, 200))) for _ in range(count)]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    texts = sample_texts(300)
    write_split(folder / "train", [texts[:120], texts[120:125], texts[125:]])
    write_split(folder / "validation", [texts[:5]])
    make_tokenizer(TokenizerSection(vocab_size=420), folder, folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def core(splits: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(splits / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def in_pieces(core: Tokenizer, text: str, size: int) -> list[int]:
    ids: list[int] = []
    for piece in pieces(text, size):
        ids += encode_word(core, piece.text, size) if piece.is_word else core.encode(piece.text).ids
    return ids


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(st.sampled_from(WORDS), max_size=150).map("".join)
    | st.lists(st.sampled_from(["a", "b", "ab"]), max_size=300).map("".join)
    | st.text(st.characters(codec="utf-8"), max_size=200),
    size=st.integers(1, 40),
)
def test_pieces_give_the_tokens_of_the_whole(core: Tokenizer, text: str, size: int) -> None:
    assert "".join(piece.text for piece in pieces(text, size)) == text
    assert in_pieces(core, text, size) == core.encode(text).ids


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(st.sampled_from(WORDS), max_size=150).map("".join)
    | st.text(st.characters(max_codepoint=127), max_size=200)
    | st.text(st.sampled_from(" \t\n\x0b\x0c\r\x1c\x85'aZ09_!é中²\u0301\u2003"), max_size=60)
    | st.text(st.characters(codec="utf-8"), max_size=200)
)
def test_words_looked_up_give_the_tokens_of_the_whole(core: Tokenizer, text: str) -> None:
    memo = WordMemo(core, np.uint16)
    for _ in range(2):
        assert memo.encode(text).tolist() == core.encode(text).ids


@pytest.mark.parametrize("unit", ["a", "ab", "abc", "中", " ", "!", "7", "\n", "é\u0301"])
def test_a_word_without_end_gives_the_tokens_of_the_whole(core: Tokenizer, unit: str) -> None:
    text = unit * 5000
    assert in_pieces(core, text, 1000) == core.encode(text).ids
    assert in_pieces(core, "x " + text + " y", 1000) == core.encode("x " + text + " y").ids


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(70, 400))
def test_long_words_of_any_merges(seed: int, size: int) -> None:
    # Tokenizers trained on a few letters have deep merges, whose effect reaches far.
    chooser = random.Random(seed)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=40, initial_alphabet=[], show_progress=False)
    letters = "abc"[: chooser.choice([1, 2, 3])]
    core.train_from_iterator(["".join(chooser.choices(letters, k=60)) for _ in range(40)], trainer)
    word = "".join(chooser.choices(letters, k=3000))
    assert encode_word(core, word, size).tolist() == core.encode(word).ids


def test_memory_is_asked_for_in_pieces_only() -> None:
    text = "word " * 100_000 + "x" * 500_000 + "，中文。" * 100_000
    sizes = [len(piece.text) for piece in pieces(text) if not piece.is_word]
    assert max(sizes) <= 2 * 2**16
    assert sum(piece.is_word for piece in pieces(text)) == 1


def test_only_tokenizers_whose_words_are_known_are_cut(core: Tokenizer) -> None:
    assert can_be_cut(core)
    for change in (
        lambda other: setattr(other, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda other: setattr(other, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda other: other.add_tokens(["the return"]),
    ):
        other = Tokenizer.from_str(core.to_str())
        change(other)
        assert not can_be_cut(other)


def test_other_tokenizers_are_cut_where_it_changes_nothing(core: Tokenizer) -> None:
    text = "".join(sample_texts(200, seed=3))
    split_apart = Tokenizer.from_str(core.to_str())
    lines = pre_tokenizers.Split(
        Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated"
    )
    split_apart.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(False, use_regex=False)])
    in_one = Tokenizer.from_str(core.to_str())
    in_one.normalizer, in_one.encode_special_tokens = normalizers.Prepend("a"), True
    found = {}
    for name, tokenizer in (("split", split_apart), ("prefix", in_one)):
        cut = list(tried_pieces(tokenizer, text, 50))
        assert [number for piece in cut for number in tokenizer.encode(piece.text).ids] == tokenizer.encode(text).ids
        found[name] = len(cut)
    assert found["split"] > 50
    # A letter is put before every text that this one gets: nowhere can it be cut.
    assert found["prefix"] == 1


def test_a_document_that_cannot_be_cut_is_refused(
    splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "LONGEST_WHOLE", 50)
    monkeypatch.setattr(encoding, "can_be_cut", lambda _: False)
    with pytest.raises(UserError, match=r"part-0000\d\.parquet: a document .* cannot be cut for this tokenizer"):
        tokenise(DataSection(), splits / "train", splits / "tokenizer", tmp_path)


def read_shards(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))])


@pytest.mark.parametrize("few_cores", [0, 1000])
def test_shards_hold_each_document(
    splits: Path, core: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_cores: int
) -> None:
    # Both ways of encoding, whatever machine this is.
    monkeypatch.setattr(encoding, "FEW_CORES", few_cores)
    # Small enough that documents are cut, spread over lots and over row groups.
    monkeypatch.setattr(encoding, "LOT_CHARACTERS", 100)
    monkeypatch.setattr(tokens, "ROW_GROUP_TOKENS", 200)
    monkeypatch.setattr(encoding, "pieces", lambda text: pieces(text, 16))
    report = tokenise(DataSection(), splits / "train", splits / "tokenizer", tmp_path)
    texts = sample_texts(300)
    expected = [core.encode(text, add_special_tokens=False).ids for text in texts]

    table = read_shards(tmp_path)
    assert table.schema.names == ["input_ids", "tokens", "bytes"]
    assert table.schema.field("input_ids").type.value_type == pa.uint16()
    assert table["input_ids"].to_pylist() == expected
    assert table["tokens"].to_pylist() == [len(ids) for ids in expected]
    assert table["bytes"].to_pylist() == [len(text.encode()) for text in texts]
    assert report == {
        "documents": 300,
        "tokens": sum(map(len, expected)),
        "bytes": sum(len(text.encode()) for text in texts),
        "vocab_size": 420,
        "eos_id": 2,
        "pad_id": 0,
        "tokenizer_sha256": sha256_file(splits / "tokenizer" / "tokenizer.json"),
    }
    metadata = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata
    assert metadata.num_row_groups > 5
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_bytes_do_not_depend_on_workers(splits: Path, tmp_path: Path) -> None:
    hashes = set()
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        tokenise(DataSection(dask_workers=workers), splits / "train", splits / "tokenizer", folder)
        hashes.add(tuple(sha256_file(part) for part in sorted(folder.iterdir())))
    assert len(hashes) == 1
    assert len(hashes.pop()) == 3


def test_a_large_vocabulary_is_written_in_four_bytes(tmp_path: Path) -> None:
    words = [f"w{np.base_repr(i, 36).lower()}" for i in range(70_000)]
    core = Tokenizer(models.WordLevel({"<eos>": 0, **{word: i + 1 for i, word in enumerate(words)}}, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(tmp_path / "tokenizer")
    write_split(tmp_path / "train", [[" ".join(words[-3:]), words[0]]])
    (tmp_path / "shards").mkdir()
    report = tokenise(DataSection(), tmp_path / "train", tmp_path / "tokenizer", tmp_path / "shards")
    table = read_shards(tmp_path / "shards")
    assert table["input_ids"].to_pylist() == [[69_998, 69_999, 70_000], [1]]
    assert table.schema.field("input_ids").type.value_type == pa.uint32()
    assert (report["vocab_size"], report["eos_id"], report["pad_id"]) == (70_001, 0, None)


def test_missing_and_damaged_input_is_named(splits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no documents"):
        tokenise(DataSection(), tmp_path / "nowhere", splits / "tokenizer", tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        tokenise(DataSection(), splits / "train", tmp_path, tmp_path)
    write_split(tmp_path / "train", [sample_texts(20), sample_texts(20)])
    part = tmp_path / "train" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"part-00001\.parquet cannot be read"):
        tokenise(DataSection(), tmp_path / "train", splits / "tokenizer", tmp_path)
    assert load_tokenizer(splits / "tokenizer").eos_token_id == 2
