"""How alike the predictions of two models are: computed once for every pair, and kept.

Both models predict every scored token of the same windows of the test split. `same_next_token` is the share of these
for which their most likely next token is the same; `symmetric_kl` is KL(p||q) + KL(q||p), the sum over the vocabulary
of (p - q)(log p - log q), in nats per token: the mean over the same tokens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from retlab.artifacts import read_json, write_json
from retlab.errors import UserError
from retlab.progress import progress
from retlab.sweep.grid import Grid, Trial
from retlab.sweep.outcomes import Outcome

Pair = tuple[str, str]


@dataclass(frozen=True)
class Similarity:
    """How alike two models predict."""

    same_next_token: float
    "Share of the tokens for which both hold the same next token for the most likely."
    symmetric_kl: float
    "KL(p||q) + KL(q||p), nats per token."
    tokens: int
    "Tokens that both predicted."


def compare_models(
    grid: Grid, outcomes: dict[str, Outcome], say: Callable[[str], None], compares: bool = True
) -> dict[Pair, Similarity]:
    """The similarity of all pairs of architectures that finished at the same point with the same seed.

    Each is computed once and kept as `<sweep>/similarity/<id>-<id>.json`; it is computed anew only for another
    `grid_search.similarity_windows`. `say` names what cannot be compared.
    Without `compares` only those that are kept are given.
    """
    windows, folder = grid.config.grid_search.similarity_windows, grid.folder / "similarity"
    groups = [group for group in _groups(grid, outcomes) if len(group) > 1]
    wanted = {pair for group in groups for pair in _pairs(group)}
    found = {pair: kept for pair in wanted if (kept := _read(_file(folder, pair), pair, windows))}
    if compares and len(found) < len(wanted):
        # PyTorch and transformers load only where there is something to compute.
        from retlab.sweep.predictions import Predictions

        folder.mkdir(parents=True, exist_ok=True)
        predictions = Predictions(windows)
        with progress("compare predictions", total=len(wanted) - len(found), unit="pair") as bar:
            for group in groups:
                missing = [pair for pair in _pairs(group) if pair not in found]
                try:
                    new = predictions.compare(group, missing)
                except UserError as error:
                    say(f"note: {' and '.join(trial.id for trial in group)} are not compared: {error}")
                    continue
                for pair, similarity in new.items():
                    _write(_file(folder, pair), pair, windows, similarity)
                found |= new
                bar.advance(len(missing))
    return found


def _groups(grid: Grid, outcomes: dict[str, Outcome]) -> Iterator[list[Trial]]:
    """Finished trials of one point and seed, in the order of the architectures."""
    for point in grid.points:
        for seed in dict.fromkeys(trial.seed for trial in point.trials):
            group = [trial for trial in point.trials if trial.seed == seed]
            yield [trial for trial in group if outcomes[trial.id].status == "finished"]


def _pairs(group: list[Trial]) -> list[Pair]:
    return [(one.id, other.id) for one, other in combinations(group, 2)]


def _file(folder: Path, pair: Pair) -> Path:
    return folder / f"{pair[0]}-{pair[1]}.json"


def _read(file: Path, pair: Pair, windows: int) -> Similarity | None:
    """What an earlier call found; None where there is nothing, or it was on another number of windows."""
    kept = read_json(file)
    if not isinstance(kept, dict) or kept.get("trials") != list(pair) or kept.get("windows") != windows:
        return None
    try:
        similarity = Similarity(kept["same_next_token"], kept["symmetric_kl_nats_per_token"], kept["tokens"])
        return similarity if math.isfinite(similarity.symmetric_kl + similarity.same_next_token) else None
    except (KeyError, TypeError):
        return None


def _write(file: Path, pair: Pair, windows: int, similarity: Similarity) -> None:
    content = {
        "trials": list(pair),
        "windows": windows,
        "tokens": similarity.tokens,
        "same_next_token": similarity.same_next_token,
        "symmetric_kl_nats_per_token": similarity.symmetric_kl,
    }
    write_json(file, content)
