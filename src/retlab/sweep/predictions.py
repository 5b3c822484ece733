"""Models of a sweep predict the same tokens of the test split, side by side."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from retlab.data.settings import DataSection
from retlab.data.shards import check_shards, open_shards
from retlab.data.windows import Windows, WindowStream, to_batch
from retlab.errors import UserError
from retlab.evaluation.trained_model import TrainedModel, load_trained_model
from retlab.memory import memory_errors
from retlab.sweep.grid import Trial
from retlab.sweep.similarity import Pair, Similarity

LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}
"""Most logits of a model in float32 at a time: what a CPU's cache holds, and 64 MiB on a GPU."""

Batch = dict[str, torch.Tensor]


class Predictions:
    """Compares groups of models. A model stays loaded as long as the group that follows has it too."""

    def __init__(self, windows: int) -> None:
        self.windows = windows
        self._models: dict[str, TrainedModel] = {}
        self._batches: dict[tuple[object, ...], Batch] = {}

    def compare(self, group: Sequence[Trial], pairs: Sequence[Pair]) -> dict[Pair, Similarity]:
        """Compare pairs of one group: finished trials of one point and seed.

        Raises:
            UserError: a model or the test split is missing or damaged, they do not belong together, the models have
                different vocabularies, their predictions are not finite, or the memory does not do.
        """
        needed = [trial for trial in group if any(trial.id in pair for pair in pairs)]
        self._models = {trial.id: self._models[trial.id] for trial in needed if trial.id in self._models}
        if not needed:
            return {}
        config = needed[0].config
        size = config.evaluate.batch_size
        sentence = (
            f"{len(needed)} models that predict {size} windows of {config.data.sequence_length:,} tokens at once",
            "lower evaluate.batch_size, which changes no result",
        )
        with memory_errors(lambda: sentence):
            for trial in needed:
                if trial.id not in self._models:
                    self._models[trial.id] = _load(trial)
            batch = self._batch(config.data, self._models[needed[0].id])
            return compare_predictions(self._models, pairs, batch, size)

    def _batch(self, data: DataSection, trained: TrainedModel) -> Batch:
        special = trained.eos_id, trained.pad_id
        key = (data.tokens_folder, data.sequence_length, data.packing, data.reset_at_documents, *special)
        if key not in self._batches:
            self._batches[key] = fixed_windows(data, self.windows, *special)
        return self._batches[key]


def _load(trial: Trial) -> TrainedModel:
    folder = trial.folder / "model"
    trained = load_trained_model(trial.config.evaluate, folder)
    check_shards(trial.config.data.shards_folder("test"), folder)
    return trained


def fixed_windows(data: DataSection, count: int, eos_id: int, pad_id: int) -> Batch:
    """So many windows of the test split, evenly spread over it: number i * all // count for every i below `count`.

    They depend on the split, `sequence_length`, `packing` and `reset_at_documents` alone, and on no seed. A split with
    fewer windows gives all of them. Returns the batch of `data.windows.to_batch`.

    Raises:
        UserError: no readable shards.
    """
    shards = open_shards(data.shards_folder("test"), data.sequence_length)
    stream = WindowStream(shards, np.arange(len(shards.group)), data.sequence_length, data.packing, eos_id)
    count = min(count, stream.all_windows)
    # One at a time: what lies between two windows is not read.
    cut = [stream.cut(np.array([number * stream.all_windows // count])) for number in range(count)]
    windows = Windows(*(np.concatenate(parts) for parts in zip(*cut, strict=True)))
    return to_batch(windows, pad_id, data.reset_at_documents)


def compare_predictions(
    models: dict[str, TrainedModel], pairs: Sequence[Pair], batch: Batch, batch_size: int
) -> dict[Pair, Similarity]:
    """Compare models, pair by pair, on all tokens of a batch that are not padding.

    Args:
        models: by name, with one vocabulary.
        pairs: of the names.
        batch: as of `data.windows.to_batch`; no target is looked at.
        batch_size: windows at a time; changes no result.

    Raises:
        UserError: different vocabularies, or predictions that are not finite.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    words = {models[name].model.lm_head.out_features for name in names}
    if len(words) > 1:
        raise UserError(f"their vocabularies have {' and '.join(f'{size:,}' for size in sorted(words))} tokens")
    rows = max(1, LOGITS_AT_ONCE[models[names[0]].device.type] // words.pop())
    sums = {pair: np.zeros(2) for pair in pairs}
    tokens = 0
    with torch.inference_mode():
        for start in range(0, len(batch["input_ids"]), batch_size):
            part = {key: value[start : start + batch_size] for key, value in batch.items()}
            hidden = {name: _encode(models[name], part).split(rows) for name in names}
            for pieces in zip(*hidden.values(), strict=True):
                tokens += len(pieces[0])
                _add(sums, models, dict(zip(hidden, pieces, strict=True)))
    if not all(math.isfinite(total) for pair in sums.values() for total in pair):
        raise UserError("their predictions are not finite")
    return {
        pair: Similarity(float(same) / tokens, float(divergence) / tokens, tokens)
        for pair, (same, divergence) in sums.items()
    }


def _encode(trained: TrainedModel, batch: Batch) -> torch.Tensor:
    """What the output projection reads at the tokens that are not padding: [tokens, hidden_size]."""
    device = trained.device
    with trained.autocast():
        ids, segments = batch["input_ids"].to(device), batch["segment_ids"].to(device)
        assert trained.ours is not None
        return trained.ours.encode(input_ids=ids, segment_ids=segments).hidden[batch["loss_mask"].to(device)]


def _add(sums: dict[Pair, np.ndarray], models: dict[str, TrainedModel], hidden: dict[str, torch.Tensor]) -> None:
    """Add equal choices, and divergences in nats, of the tokens of `hidden` to each pair's two sums."""
    chosen, logs = {}, {}
    for name, states in hidden.items():
        with models[name].autocast():
            logits = models[name].model.lm_head(states).float()
        chosen[name], logs[name] = logits.argmax(-1), logits.log_softmax(-1)
    for pair, total in sums.items():
        one, other = (logs[name] for name in pair)
        total[0] += int((chosen[pair[0]] == chosen[pair[1]]).sum())
        total[1] += float(((one.exp() - other.exp()) * (one - other)).sum(dtype=torch.float64))
