"""One line of the benchmark's table."""

from dataclasses import dataclass

RETLAB = "RetLab"
TRAINING = "training"
FORWARD = "training: forward"
LOADER = ("training: loader", "training: constant")
PREFILL = "prefill"
DECODE = "decode"
FIRST_DECODE = "decode: first 64 tokens"
TOKENISER = "tokeniser"
LOADER_ALONE = "loader alone"
"""What is measured; see the explanations in `report`."""


@dataclass(frozen=True)
class Row:
    """What was measured of one implementation at one shape; None where a number does not apply or is missing."""

    measurement: str
    model: str
    implementation: str
    batch: int | None = None
    tokens: int | None = None
    "Of each row: the window, or the context before the tokens that are generated."
    tokens_per_second: float | None = None
    milliseconds: float | None = None
    "Of a training step, of a prefill, of one generated token of all rows, of one batch of the loader."
    model_flops_utilization: float | None = None
    weight_readings: float | None = None
    "Time of one generated token over the time that reading all weights once takes."
    retlab_ratio: float | None = None
    "RetLab's tokens per second over those of this row."
    peak_memory_gib: float | None = None
    state_mib: float | None = None
    "Cache after the generation: states of retention, keys and values of attention."
    flops_per_token: float | None = None
    weight_bytes: int | None = None
    remark: str = ""
