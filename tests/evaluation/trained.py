"""A small untrained model folder with a tokenizer, and splits and token shards of the same documents."""

import json
from pathlib import Path

import pyarrow as pa
import torch
from tests.data.shard_files import write_shards
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from retlab.artifacts import sha256_file
from retlab.data.documents import DocumentFile, as_texts
from retlab.data.settings import DataSection
from retlab.models.causal_lm import MODELS
from retlab.models.configuration import CONFIGS

EOS, VOCAB = 2, 260
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
DOCUMENTS = {
    "train": ["the cat sat on the mat", "a dog", "the dog sat", "x = <eos> + 1\n" * 3, "été 日本 🙂"],
    "test": [
        "the cat",
        "é",
        "the dog sat on a cat and did not move " * 4,
        "x",
        "def f(x):\n    return x + 1\n",
        "日本",
    ],
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: four special tokens and the byte alphabet."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *sorted(_ALPHABET)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def write_model(folder: Path, architecture: str = "retnet", seed: int = 0) -> Path:
    """A tiny model whose weights are large enough that every token matters."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture](
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    model = MODELS[architecture](config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_other_model(folder: Path, kind: str = "llama", window: int = 64, seed: int = 0) -> Path:
    """A tiny model of transformers with a tokenizer of its own, which opens documents with <s> and closes with </s>."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        kind, **sizes, intermediate_size=64, max_position_embeddings=window, bos_token_id=0, eos_token_id=1
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    model.save_pretrained(folder)
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *sorted(_ALPHABET)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def write_data(folder: Path, model_folder: Path, sequence_length: int = 16, **settings: object) -> DataSection:
    """Splits and shards of DOCUMENTS as their stages leave them, two row groups to a part."""
    data = DataSection(
        folder=folder,
        tokens_folder=folder / "tokens",
        sequence_length=sequence_length,
        **settings,  # type: ignore[arg-type]
    )
    tokenizer = byte_tokenizer()
    for split, documents in DOCUMENTS.items():
        texts = data.splits_folder / split
        texts.mkdir(parents=True)
        with DocumentFile(texts / "part-00000.parquet") as file:
            file.write(as_texts([text.encode() for text in documents]))
        ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in documents]
        shards = data.tokens_folder / split  # type: ignore[operator]
        write_shards(shards, [[ids[:2], ids[2:3]], [ids[3:]]], VOCAB)
        _set_bytes(shards, documents)
        manifest = {"outputs": {}, "report": {"tokenizer_sha256": sha256_file(model_folder / "tokenizer.json")}}
        (shards / "manifest.json").write_text(json.dumps(manifest))
    return data


def _set_bytes(shards: Path, documents: list[str]) -> None:
    """Replace the made-up byte counts of `write_shards`."""
    import pyarrow.parquet as pq

    sizes = iter([len(text.encode()) for text in documents])
    for part in sorted(shards.glob("part-*.parquet")):
        parquet = pq.ParquetFile(part)
        groups = [parquet.read_row_group(group) for group in range(parquet.num_row_groups)]
        with pq.ParquetWriter(part, parquet.schema_arrow, compression="zstd") as writer:
            for group in groups:
                counts = pa.array([next(sizes) for _ in range(len(group))], pa.uint64())
                writer.write_table(group.set_column(2, group.schema.field("bytes"), counts))
