"""Loss of every document of a split: each token scored once, the end of text included, sums in float64.

The windows are those of validation (`data.windows`): documents in file order, each behind an end-of-text token that
is its first token's only context and ended by one that is scored. With `data.packing: packed` this stream is cut every
`sequence_length` targets, so consecutive windows do not overlap and the first target of a window sees one token of
context; with `padded` every document is cut by itself. With `reset_at_documents` nothing crosses a document boundary.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from retlab.data.loader import SequentialLoader
from retlab.data.reading import parts_of
from retlab.data.settings import DataSection
from retlab.errors import UserError
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


def score_documents(trained: TrainedModel, data: DataSection, shards: Path, batch_size: int) -> DocumentLosses:
    """Score the token shards of one split.

    Args:
        trained: the model.
        data: sequence_length, packing and reset_at_documents are read.
        shards: token shards of the split, made with the model's tokenizer.
        batch_size: windows at a time; changes no result.

    Raises:
        UserError: no readable shards, tokens beyond the model's vocabulary, or a loss that is not finite.
    """
    loader = SequentialLoader(data, shards, batch_size=batch_size, eos_id=trained.eos_id, pad_id=trained.pad_id)
    nats = torch.zeros(loader.documents, dtype=torch.float64)
    targets = torch.zeros(loader.documents, dtype=torch.int64)
    with torch.inference_mode(), progress("evaluate", total=loader.targets, unit="token") as bar:
        for batch in loader:
            mask = batch["loss_mask"]
            documents = batch["document_ids"][mask]
            losses = _token_losses(trained, batch["input_ids"], batch["segment_ids"], batch["targets"], mask)
            nats.index_add_(0, documents, losses)
            targets.index_add_(0, documents, torch.ones_like(documents))
            bar.advance(len(documents))
    assert int(targets.sum()) == loader.targets
    if not bool(torch.isfinite(nats).all()):
        first = int((~torch.isfinite(nats)).nonzero()[0])
        raise UserError(f"the model's loss on document {first} of {shown_path(shards)} is not finite; train it anew")
    return DocumentLosses(nats.numpy(), targets.numpy(), _document_bytes(shards))


def _token_losses(
    trained: TrainedModel, input_ids: torch.Tensor, segment_ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """-log p of the targets where the mask is True, in its order: float64 on the CPU."""
    device, model = trained.device, trained.model
    with trained.autocast():
        hidden = _encode(model, input_ids, segment_ids, device)[mask.to(device)]
        labels = targets[mask].to(device)
        rows = max(1, LOGITS_AT_ONCE // model.lm_head.out_features)
        losses = [
            F.cross_entropy(model.lm_head(part).float(), wanted, reduction="none")
            for part, wanted in zip(hidden.split(rows), labels.split(rows), strict=True)
        ]
    return torch.cat(losses).double().cpu()


def _encode(model: CausalLM, input_ids: torch.Tensor, segment_ids: torch.Tensor, device: torch.device) -> torch.Tensor:
    try:
        model.check_ids(input_ids)
        return model.encode(input_ids=input_ids.to(device), segment_ids=segment_ids.to(device)).hidden
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
