"""Loss of every document of a split: each token scored once, the end of text included, sums in float64.

The windows are those of validation (`data.windows`): documents in file order, each behind an end-of-text token that
is its first token's only context and ended by one that is scored. With `data.packing: packed` this stream is cut every
`sequence_length` targets, so consecutive windows do not overlap and the first target of a window sees one token of
context; with `padded` every document is cut by itself. With `reset_at_documents` nothing crosses a document boundary.
With `carry_state` a document's windows follow each other with the state carried across, so that every token sees all
of its document that stands before it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from retlab.data.loader import SequentialLoader
from retlab.data.reading import parts_of
from retlab.data.settings import DataSection
from retlab.data.shards import open_shards
from retlab.errors import UserError
from retlab.evaluation.positions import PositionLosses
from retlab.evaluation.trained_model import TrainedModel
from retlab.models.causal_lm import CausalLM
from retlab.progress import progress
from retlab.section import shown_path

LOGITS_AT_ONCE = 2**26
"""Most logits in float32 at a time (256 MiB)."""


@dataclass(frozen=True)
class DocumentLosses:
    """What each document of a split costs a model, in file order."""

    nats: npt.NDArray[np.float64]
    "Sum of -log p over the document's targets."
    targets: npt.NDArray[np.int64]
    "The document's tokens and its end of text."
    bytes: npt.NDArray[np.int64]
    "UTF-8 bytes of the document."
    positions: PositionLosses
    "The same losses by the place of the target in its document."


class Scored(NamedTuple):
    """Targets that were scored together, one entry each, on the CPU."""

    losses: torch.Tensor
    "float64, -log p in nats."
    documents: torch.Tensor
    "int64, number of the document in file order."
    positions: torch.Tensor
    "int64, place in the document from 1."


def score_documents(
    trained: TrainedModel, data: DataSection, shards: Path, batch_size: int, carry_state: bool = False
) -> DocumentLosses:
    """Score the token shards of one split.

    Args:
        trained: the model.
        data: sequence_length, packing and reset_at_documents are read.
        shards: token shards of the split, made with the model's tokenizer.
        batch_size: windows at a time; changes no result.
        carry_state: carry the state of a recurrent model from window to window of a document.

    Raises:
        UserError: no readable shards, tokens beyond the model's vocabulary, a loss that is not finite, or a state to be
            carried by a model without one.
    """
    loader = SequentialLoader(data, shards, batch_size=batch_size, eos_id=trained.eos_id, pad_id=trained.pad_id)
    nats = torch.zeros(loader.documents, dtype=torch.float64)
    targets = torch.zeros(loader.documents, dtype=torch.int64)
    positions = PositionLosses()
    scored = _carried(trained, data, shards, batch_size) if carry_state else _in_windows(trained, loader)
    with torch.inference_mode(), progress("evaluate", total=loader.targets, unit="token") as bar:
        for part in scored:
            nats.index_add_(0, part.documents, part.losses)
            targets.index_add_(0, part.documents, torch.ones_like(part.documents))
            positions.add(part.positions, part.losses)
            bar.advance(len(part.losses))
    assert int(targets.sum()) == loader.targets
    if not bool(torch.isfinite(nats).all()):
        first = int((~torch.isfinite(nats)).nonzero()[0])
        raise UserError(f"the model's loss on document {first} of {shown_path(shards)} is not finite; train it anew")
    return DocumentLosses(nats.numpy(), targets.numpy(), _document_bytes(shards), positions)


def windows_for(trained: TrainedModel, data: DataSection) -> DataSection:
    """The windows that a model can read: of another than RetLab's own, documents by themselves, in its own window.

    Other models know no boundaries of documents in a window.
    """
    if trained.ours is not None:
        return data
    length = min(data.sequence_length, trained.window or data.sequence_length)
    packing = "padded" if data.reset_at_documents else data.packing
    return data.model_copy(update={"sequence_length": length, "packing": packing})


def _in_windows(trained: TrainedModel, loader: SequentialLoader) -> Iterator[Scored]:
    scored = torch.zeros(loader.documents, dtype=torch.int64)
    for batch in loader:
        mask = batch["loss_mask"]
        documents = batch["document_ids"][mask]
        # Targets come in the order of the documents: behind what was scored of the document before, one by one.
        found, counts = torch.unique_consecutive(documents, return_counts=True)
        begins = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        positions = scored[documents] + torch.arange(len(documents)) - begins + 1
        scored[found] += counts
        opens = torch.zeros_like(mask)
        opens[mask] = positions == 1
        # Another model's documents begin with a token of their own.
        input_ids = batch["input_ids"].masked_fill(opens, trained.opening_id)
        losses = _token_losses(trained, input_ids, batch["segment_ids"], batch["targets"], mask)
        yield Scored(losses, documents, positions)


def _carried(trained: TrainedModel, data: DataSection, folder: Path, batch_size: int) -> Iterator[Scored]:
    """All documents, some of like length at a time, window after window with the state carried on."""
    model = trained.with_state()
    shards, before = open_shards(folder, data.sequence_length), 0
    for group in range(len(shards.documents)):
        tokens = shards.read(group, trained.eos_id)
        texts = [torch.from_numpy(part.astype(np.int64)) for part in np.split(tokens.stream, tokens.starts[1:])]
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            numbers = torch.tensor(chosen) + before
            inputs = [texts[one] for one in chosen]
            targets = [torch.cat([text[1:], torch.tensor([trained.eos_id])]) for text in inputs]
            for scored in carried_losses(trained, model, inputs, targets, data.sequence_length):
                yield scored._replace(documents=numbers[scored.documents])
        before += len(texts)


def carried_losses(
    trained: TrainedModel, model: CausalLM, inputs: list[torch.Tensor], targets: list[torch.Tensor], window: int
) -> Iterator[Scored]:
    """Losses of texts side by side, window after window with the state carried on.

    Args:
        trained: the model, which carries a state.
        model: the same, as RetLab's own.
        inputs: int64 [tokens] of each text.
        targets: the token to predict at each of these places.
        window: tokens at a time.

    Yields:
        The targets of a window; `documents` are their texts' places in the list.
    """
    lengths = torch.tensor([len(text) for text in inputs])
    inputs_of = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=trained.pad_id)
    targets_of = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=trained.pad_id)
    places = torch.arange(inputs_of.shape[1]).expand_as(inputs_of)
    cache = model.new_cache()
    for start in range(0, inputs_of.shape[1], window):
        part = slice(start, start + window)
        mask = places[:, part] < lengths[:, None]
        # Behind a document's end stands padding, whose state nobody reads.
        with trained.autocast():
            hidden = _checked(model, inputs_of[:, part], past_key_values=cache, device=trained.device)
            losses = _head_losses(model, hidden[mask.to(trained.device)], targets_of[:, part][mask])
        rows = torch.arange(len(inputs))[:, None].expand_as(mask)
        yield Scored(losses, rows[mask], places[:, part][mask] + 1)


def _token_losses(
    trained: TrainedModel, input_ids: torch.Tensor, segment_ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """-log p of the targets where the mask is True, in its order: float64 on the CPU."""
    device, model = trained.device, trained.ours
    with trained.autocast():
        if model is None:
            return _other_losses(trained, input_ids, targets, mask)
        hidden = _checked(model, input_ids, segment_ids=segment_ids.to(device), device=device)
        return _head_losses(model, hidden[mask.to(device)], targets[mask])


def _head_losses(model: CausalLM, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of targets [n] given the last hidden states [n, hidden_size], a part of the logits at a time."""
    labels = targets.to(hidden.device)
    rows = max(1, LOGITS_AT_ONCE // model.lm_head.out_features)
    losses = [
        F.cross_entropy(model.lm_head(part).float(), wanted, reduction="none")
        for part, wanted in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(losses).double().cpu()


def _other_losses(
    trained: TrainedModel, input_ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The same of a model of transformers, which may do anything between its hidden states and its logits."""
    device = trained.device
    rows = max(1, LOGITS_AT_ONCE // (trained.config.vocab_size * input_ids.shape[1]))
    losses = []
    for ids, wanted, counts in zip(input_ids.split(rows), targets.split(rows), mask.split(rows), strict=True):
        chosen = counts.to(device)
        logits = trained.model(input_ids=ids.to(device), attention_mask=chosen.long(), use_cache=False).logits
        losses.append(F.cross_entropy(logits[chosen].float(), wanted.to(device)[chosen], reduction="none"))
    return torch.cat(losses).double().cpu()


def _checked(model: CausalLM, input_ids: torch.Tensor, device: torch.device, **more: object) -> torch.Tensor:
    try:
        model.check_ids(input_ids)
        return model.encode(input_ids=input_ids.to(device), **more).hidden  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"the model cannot read these token shards: {error}") from None


def _document_bytes(shards: Path) -> npt.NDArray[np.int64]:
    columns = [pq.read_table(file, columns=["bytes"])["bytes"] for file in parts_of(shards)]
    return np.concatenate([column.to_numpy() for column in columns]).astype(np.int64)


def rates(nats: float, targets: int, text_bytes: int) -> dict[str, float]:
    """Loss in nats per token, perplexity, and bits per UTF-8 byte of a sum of -log p over targets."""
    loss = nats / targets
    return {
        "loss": loss,
        # exp(709.8) is the largest float64.
        "perplexity": math.exp(loss) if loss < 709 else math.inf,
        "bits_per_byte": nats / math.log(2) / text_bytes,
    }


def write_document_losses(file: Path, losses: DocumentLosses, hashes: list[str]) -> None:
    """One row per document: number in file order, hash of its text, sum of -log p in nats, targets, bytes."""
    table = pa.table(
        {
            "document": pa.array(range(len(hashes)), pa.int64()),
            "sha256": pa.array(hashes, pa.string()),
            "nats": losses.nats,
            "tokens": losses.targets,
            "bytes": losses.bytes,
        }
    )
    pq.write_table(table, file, compression="zstd")
