"""A further process of a training: `python -m retlab.training.helper`, started by `processes.all_processes`."""

import os
import signal
import sys
import threading
from typing import Any

from retlab.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError, one_line
from retlab.training.request import TrainingRequest


def main() -> int:
    """Train as one of several processes; the first one does the talking and the writing."""
    request = TrainingRequest.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    stop = note_signals()

    from retlab.training.trainer import train_as_helper

    try:
        train_as_helper(request, stop.is_set)
    except UserError as error:
        # The first process has found the same, or reads it here.
        print(error, flush=True)
        return EXIT_USER_ERROR
    except Interrupted:
        return EXIT_INTERRUPTED
    except RuntimeError as error:
        from retlab.training.processes import EXIT_LOST, lost_connection

        if not lost_connection(error):
            raise
        print(one_line(error), flush=True)
        return EXIT_LOST
    return 0


def note_signals() -> threading.Event:
    """An event that is set by the signals on which a training saves and leaves."""
    stop = threading.Event()

    def handle(_number: int, _frame: Any) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, handle)
    return stop


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
