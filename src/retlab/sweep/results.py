"""What a trial leaves: one result, written once; or the failure that is to be tried again only when asked."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from retlab.artifacts import write_atomic
from retlab.section import Section

Kept = TypeVar("Kept", bound=Section)
RESULT, FAILURE = "result.json", "failure.json"


class TrialResult(Section):
    """The result of a trial; a diverged training is one too."""

    trial: str
    "Identity of the trial."
    status: Literal["finished", "diverged"]
    "A diverged training came to a loss or gradient that is not finite."
    message: str | None = None
    "What the diverged training said."
    architecture: str
    "retnet, transformer or longnet."
    seed: int
    "Seed of weights and data order."
    parameters: int
    "Parameters of the model."
    steps: int
    "Optimizer steps done."
    tokens: int
    "Tokens trained on."
    best_step: int | None = None
    "Step of the checkpoint with the lowest validation loss, whose model was tested and kept."
    validation_loss: float | None = None
    "Lowest validation loss, in nats per token; None of a diverged training."
    test_loss: float | None = None
    "Loss of that checkpoint on the test split, in nats per token."
    test_bits_per_byte: float | None = None
    "The same in bits per UTF-8 byte."
    training_seconds: float
    "Seconds in training steps, over all attempts."
    tokens_per_second: float
    "Training tokens per second of those."
    validation_seconds: float | None = None
    "Mean seconds of a validation of the last attempt, with the saving of its checkpoint."
    seconds: float
    "Seconds of the last attempt, from its start to the result."
    energy_kwh: float | None = None
    "Energy of all attempts, where it was measured."
    emissions_kg: float | None = None
    "Emissions of that energy, in kg of CO2 equivalents."
    energy_method: str = "not measured"
    "How the energy was found, and whether it is a share of what several trials used together."
    device: str
    "Name of the GPU, or cpu."
    host: str
    "Machine that finished the trial."
    started: str
    "Start of the last attempt, ISO 8601 in UTC."
    ended: str
    "End of it."
    versions: dict[str, str]
    "Versions of the libraries."
    commit: str | None = None
    "Commit of the code."


class TrialFailure(Section):
    """Why a trial has no result; it is run again only when asked."""

    trial: str
    "Identity of the trial."
    kind: Literal["error", "out of memory", "killed", "timeout"]
    "What became of it."
    message: str
    "What went wrong, in a sentence."
    host: str
    "Machine on which it happened."
    ended: str
    "When, ISO 8601 in UTC."

    @property
    def sentence(self) -> str:
        """Kind and message for people."""
        return self.message if self.message.startswith(self.kind) else f"{self.kind}: {self.message}"


def read_result(folder: Path) -> TrialResult | None:
    """The result in a trial's folder; None where there is none, no whole one, or that of another trial."""
    result = _read(folder / RESULT, TrialResult)
    # A folder that was copied or renamed by hand holds another's.
    return result if result is not None and result.trial == folder.name else None


def read_failure(folder: Path) -> TrialFailure | None:
    """The failure in a trial's folder."""
    return _read(folder / FAILURE, TrialFailure)


def write_result(folder: Path, result: TrialResult) -> None:
    """Write the result atomically; an earlier failure is then history."""
    write_atomic(folder / RESULT, result.model_dump_json(indent=2) + "\n")
    (folder / FAILURE).unlink(missing_ok=True)


def write_failure(folder: Path, failure: TrialFailure) -> None:
    """Write the failure atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FAILURE, failure.model_dump_json(indent=2) + "\n")


def _read(file: Path, kind: type[Kept]) -> Kept | None:
    try:
        return kind.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
