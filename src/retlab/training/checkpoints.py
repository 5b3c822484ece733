"""Checkpoint files of one training: written atomically, pruned to the best and the last."""

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retlab.artifacts import sync_folder
from retlab.errors import UserError
from retlab.section import shown_path

FORMAT = 2
"""Layout of a checkpoint; files of another layout are refused."""

_NAME = re.compile(r"step-(\d+)\.pt")


class CheckpointStore:
    """The folder `checkpoints` of a run: `step-00000500.pt` and so on, the highest step is the last one.

    A checkpoint is a dictionary of tensors and plain values: `format`, `step`, `best` (pairs of validation loss and
    step, best first) and whatever else the training keeps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """File of the checkpoint after so many optimizer steps."""
        return self.folder / f"step-{step:08d}.pt"

    def steps(self) -> list[int]:
        """Steps of all checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(file.name) for file in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def last(self) -> dict[str, Any] | None:
        """The last checkpoint, its tensors mapped from the file, or None before the first one."""
        steps = self.steps()
        return load_checkpoint(self.path(steps[-1])) if steps else None

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint as the last one, then drop those that are neither the last nor among the best.

        A kill at any moment leaves the earlier ones, and at most one partial file that the next save replaces.

        Raises:
            UserError: the file cannot be written, such as on a full disk; the earlier checkpoints stay.
        """
        import torch

        target, partial = self.path(checkpoint["step"]), self.folder / ".checkpoint.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save({"format": FORMAT, **checkpoint}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer.
            partial.unlink(missing_ok=True)
            raise UserError(self._failure(checkpoint["step"], error)) from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self.prune(checkpoint["best"])

    def prune(self, best: Sequence[Sequence[float]]) -> None:
        """Remove every checkpoint that is neither the last nor one of the best, and what a killed save left."""
        (self.folder / ".checkpoint.partial").unlink(missing_ok=True)
        kept = {int(step) for _, step in best}
        for step in self.steps()[:-1]:
            if step not in kept:
                self.path(step).unlink()

    def _failure(self, step: int, error: Exception) -> str:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        steps = self.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no earlier checkpoint"
        return (
            f"the checkpoint of step {step} could not be written to {shown_path(self.folder)} ({reason}); {kept}:"
            " mend that, such as by freeing disk space, and run the same command again to continue"
        )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; its tensors are mapped from the file, on the CPU.

    Raises:
        UserError: no such file, not readable, or no checkpoint of this program.
    """
    # Here and in `save` alone: whoever only asks what a run folder holds does not wait for torch.
    import torch

    if not path.is_file():
        raise UserError(f"there is no checkpoint {shown_path(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        raise UserError(
            f"{shown_path(path)} is no checkpoint, or is truncated or damaged; delete it to continue from the"
            " checkpoint before it, or from the start where there is none"
        ) from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{shown_path(path)} is no checkpoint of this version of RetLab; move it away to start anew")
    return checkpoint
