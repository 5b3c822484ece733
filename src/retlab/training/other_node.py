"""What a training does on the nodes of a job step other than the first: it learns all from there, and ends with it."""

import os
import sys
import threading
from typing import NoReturn

from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError, one_line
from retlab.nodes import Connection, join_first_node
from retlab.slurm_step import Step
from retlab.training.helper import note_signals
from retlab.training.request import TrainingRequest


def train_on_other_node(step: Step) -> NoReturn:
    """Take part in the training of the first node, which does the talking and the writing, and end with it."""
    stop = note_signals()
    connection = join_first_node(step, stop.is_set)
    order = connection.receive()
    if order is None or "end" in order:
        _end(order)
    follower = threading.Thread(target=lambda: _end(connection.receive()), daemon=True)
    follower.start()
    code, said = _train(order["request"], order["place"], stop, connection)
    if code != 0:
        connection.send({"code": code, "said": said})
    while True:
        # The first node still writes the model; a task that is over long before the others may end a job step.
        follower.join()


def _train(line: str, place: list[object], stop: threading.Event, connection: Connection) -> tuple[int, str]:
    """Exit code of this node's share, and the sentence where it failed."""
    from retlab.training.processes import EXIT_LOST, Place, all_processes, lost_connection
    from retlab.training.trainer import train_as_helper

    def leave(sentence: str) -> NoReturn:
        connection.send({"code": EXIT_USER_ERROR, "said": sentence})
        os._exit(EXIT_USER_ERROR)

    try:
        with all_processes(line, Place(*place), leave=leave):  # type: ignore[arg-type]
            train_as_helper(TrainingRequest.model_validate_json(line), stop.is_set)
    except UserError as error:
        return EXIT_USER_ERROR, str(error)
    except Interrupted:
        return EXIT_INTERRUPTED, ""
    except RuntimeError as error:
        if not lost_connection(error):
            connection.send({"code": 1, "said": f"{type(error).__name__}: {error}"})
            raise
        return EXIT_LOST, one_line(error)
    return 0, ""


def _end(order: dict[str, object] | None) -> NoReturn:
    """End this process, whatever it does: the first node has ended, with a word or without.

    srun's exit code is the highest of all tasks, and with the first task that fails it ends the others by force: that
    is to be the first node's.
    """
    if order is not None:
        os._exit(EXIT_OK)
    print(
        "error: the first node of the training is gone; checkpoints are kept: run the same command again to continue",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_USER_ERROR)
