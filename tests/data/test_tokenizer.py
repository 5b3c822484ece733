"""The tokenizer: trained from a stream, exact for any text, the same in a fresh process and at any thread count."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.text_files import write_split
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from retlab.artifacts import fingerprint, sha256_file, write_json
from retlab.data.settings import TokenizerSection
from retlab.data.tokenizer import load_tokenizer, make_tokenizer, shared_tokenizer, text_tokenizer
from retlab.errors import UserError
from train_tokenizer import refuse_to_replace, source_of_tokenizer

TEXTS = [f"def function_{i}(value):\n    return value + {i}  # größer <eos> 中文 {'x' * (i % 7)}\n" for i in range(300)]
HARD = ["<eos>", " <pad><bos> <unk>", "  two leading", "\x00\x01", "a\r\n\tb ", "don 't . a , b", "😀\u0301\u200b", ""]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    write_split(folder / "train", [TEXTS[:100], TEXTS[100:]])
    write_split(folder / "validation", [TEXTS[:10]])
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(splits: Path) -> Path:
    folder = splits / "tokenizer"
    make_tokenizer(TokenizerSection(vocab_size=340), splits, folder)
    return folder


def test_report_and_special_ids(splits: Path, tmp_path: Path) -> None:
    report = make_tokenizer(TokenizerSection(vocab_size=340), splits, tmp_path)
    core = text_tokenizer(load_tokenizer(tmp_path))
    tokens = sum(len(core.encode(text).ids) for text in TEXTS[:10])
    size = sum(len(text.encode()) for text in TEXTS[:10])
    assert report == {
        "vocab_size_requested": 340,
        "vocab_size": 340,
        "eos_id": 2,
        "pad_id": 0,
        "validation_bytes": size,
        "validation_tokens": tokens,
        "validation_bytes_per_token": round(size / tokens, 4),
    }
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<unk>"]) == [0, 1, 2, 3]
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())


def test_a_small_text_reaches_a_smaller_vocabulary(splits: Path, tmp_path: Path) -> None:
    report = make_tokenizer(TokenizerSection(vocab_size=30_000), splits, tmp_path)
    assert 260 < report["vocab_size"] < 30_000
    assert report["vocab_size"] == len(load_tokenizer(tmp_path))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from([*HARD, "a", " "])).map("".join))
def test_any_text_comes_back(tokenizer_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder) if not _LOADED else _LOADED[0]
    _LOADED[:] = [tokenizer]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(number > 3 for number in ids)
    assert text_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids == ids


_LOADED: list = []


@pytest.mark.component
def test_the_folder_alone_is_enough_in_a_fresh_process(tokenizer_folder: Path, tmp_path: Path) -> None:
    texts = [*TEXTS[:3], *HARD]
    script = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = json.load(sys.stdin)
single = [tokenizer(text)["input_ids"] for text in texts]
assert tokenizer(texts)["input_ids"] == single
assert [tokenizer.decode(ids) for ids in single] == texts
assert not any(number < 4 for ids in single for number in ids)
assert "retlab" not in sys.modules
tokenizer.save_pretrained(sys.argv[2])
json.dump(single, sys.stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tokenizer_folder, tmp_path],
        input=json.dumps(texts), capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    core = text_tokenizer(load_tokenizer(tokenizer_folder))
    assert json.loads(done.stdout) == [core.encode(text, add_special_tokens=False).ids for text in texts]
    # A model folder keeps the fingerprint of the tokenizer that it was trained with.
    assert sha256_file(tmp_path / "tokenizer.json") == sha256_file(tokenizer_folder / "tokenizer.json")


def test_nothing_is_baked_in(tokenizer_folder: Path) -> None:
    saved = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    assert saved["padding"] is saved["truncation"] is saved["normalizer"] is None
    tokenizer = load_tokenizer(tokenizer_folder)
    assert len(tokenizer("word " * 5000)["input_ids"]) >= 5000
    assert tokenizer("")["input_ids"] == []


@pytest.mark.component
def test_the_same_at_any_thread_count(splits: Path, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from retlab.data.settings import TokenizerSection
from retlab.data.tokenizer import make_tokenizer
make_tokenizer(TokenizerSection(vocab_size=600), Path(sys.argv[1]), Path(sys.argv[2]))
"""
    hashes = set()
    for threads in ("1", "3"):
        folder = tmp_path / threads
        environment = {"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", script, splits, folder], check=True, capture_output=True, env=environment)
        hashes.add(tuple(sha256_file(file) for file in sorted(folder.iterdir())))
    assert len(hashes) == 1


def test_max_bytes_takes_the_beginning(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [["abcabc" * 50], ["xyzxyz" * 50]])
    write_split(tmp_path / "validation", [["abc"]])
    make_tokenizer(TokenizerSection(vocab_size=300, max_bytes=300), tmp_path, tmp_path / "some")
    make_tokenizer(TokenizerSection(vocab_size=300), tmp_path, tmp_path / "all")
    some, everything = (set(load_tokenizer(tmp_path / name).get_vocab()) for name in ("some", "all"))
    assert "abc" in some
    assert "xyz" not in some
    assert "xyz" in everything


def test_endless_words_and_documents_take_little_memory(tmp_path: Path) -> None:
    import resource

    # Distinct letters: as one word, or as one for each piece, 60 MB would take gigabytes.
    letters = "".join(chr(0x4E00 + (i * i * 7919 + i) % 20_000) for i in range(1_000_000))
    write_split(tmp_path / "train", [[letters[i * 1000 :] for i in range(20)] + ["plain words here " * 100]])
    # At once, it would take a gigabyte to measure.
    write_split(tmp_path / "validation", [["words " * 1_200_000]])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = make_tokenizer(TokenizerSection(vocab_size=300), tmp_path, tmp_path / "tokenizer")
    assert report["validation_bytes"] == 7_200_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000
    assert len(load_tokenizer(tmp_path / "tokenizer")) == 300


def test_an_existing_tokenizer_loses_padding_and_truncation(
    tokenizer_folder: Path, splits: Path, tmp_path: Path
) -> None:
    padded = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    padded.enable_padding(length=64)
    padded.enable_truncation(64)
    other = tmp_path / "other"
    load_tokenizer(tokenizer_folder).save_pretrained(other)
    padded.save(str(other / "tokenizer.json"))
    report = make_tokenizer(TokenizerSection(from_pretrained=str(other)), splits, tmp_path / "mine")
    assert (report["vocab_size"], report["eos_id"]) == (340, 2)
    tokenizer = load_tokenizer(tmp_path / "mine")
    assert len(tokenizer("a b " * 200)["input_ids"]) > 64
    assert len(tokenizer("a")["input_ids"]) == 1


def test_special_tokens_in_the_vocabulary_of_a_word_model_are_text_too(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.normalizer, core.pre_tokenizer, core.decoder = (
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
        decoders.Metaspace(),
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", initial_alphabet=["/"], show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(tmp_path / "unigram")

    tokenizer = load_tokenizer(tmp_path / "unigram")
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    text_core = text_tokenizer(tokenizer)
    assert [text_core.encode(text).ids for text in TEXTS] == expected
    ids = text_core.encode("return</s> value").ids
    assert 1 not in ids
    assert tokenizer.decode(ids) == "return</s> value"


def test_unusable_tokenizers_are_refused(splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path / "endless")
    with pytest.raises(UserError, match="no end-of-text token"):
        make_tokenizer(TokenizerSection(from_pretrained=str(tmp_path / "endless")), splits, tmp_path / "out")
    with pytest.raises(UserError, match=r"nobody/no-such-tokenizer' cannot be loaded: .*offline") as error:
        make_tokenizer(TokenizerSection(from_pretrained="nobody/no-such-tokenizer"), splits, tmp_path / "out")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such folder"):
        make_tokenizer(TokenizerSection(from_pretrained=str(tmp_path / "nowhere")), splits, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        make_tokenizer(TokenizerSection(from_pretrained=str(tmp_path / "empty")), splits, tmp_path / "out")
    (tmp_path / "empty" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="empty' cannot be loaded: .*; give a folder or hub name"):
        make_tokenizer(TokenizerSection(from_pretrained=str(tmp_path / "empty")), splits, tmp_path / "out")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_an_empty_train_split_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [[]])
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        make_tokenizer(TokenizerSection(), tmp_path, tmp_path / "out")


def test_the_tokenizer_of_another_experiment_is_kept(tmp_path: Path) -> None:
    folder, mine, others = (tmp_path / name for name in ("tokenizer", "mine", "others"))
    for place, outputs in ((mine, "a"), (others, "b")):
        place.mkdir()
        write_json(place / "manifest.json", {"outputs": {outputs: {"sha256": outputs}}})
    refuse_to_replace(folder, mine)
    folder.mkdir()
    write_json(folder / "manifest.json", {"outputs": {}, "inputs": {str(mine): "of an older mine"}})
    refuse_to_replace(folder, mine)
    with pytest.raises(UserError, match=r"of another experiment, made from .*mine: .* tokenizer\.from_pretrained"):
        refuse_to_replace(folder, others)
    write_json(folder / "manifest.json", {"outputs": {}, "inputs": {str(mine): fingerprint(others)}})
    refuse_to_replace(folder, others)


def test_a_changed_source_of_an_imported_tokenizer_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("1")
    before = source_of_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("2")
    assert source_of_tokenizer(str(tmp_path)) != before
    assert source_of_tokenizer("owner/name") == source_of_tokenizer(None) == {}


def test_a_process_shares_a_tokenizer_as_long_as_its_folder_holds_the_same(splits: Path, tmp_path: Path) -> None:
    for name, size in (("one", 300), ("other", 340)):
        make_tokenizer(TokenizerSection(vocab_size=size), splits, tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    shared, other = shared_tokenizer(tmp_path / "one"), shared_tokenizer(tmp_path / "other")
    assert (len(shared), len(other)) == (300, 340)
    assert shared_tokenizer(tmp_path / "copy") is shared
    assert shared_tokenizer(tmp_path / "other") is other
    (tmp_path / "other" / "tokenizer.json").replace(tmp_path / "one" / "tokenizer.json")
    assert len(shared_tokenizer(tmp_path / "one")) == 340
    (tmp_path / "one" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        shared_tokenizer(tmp_path / "one")
