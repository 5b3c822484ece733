"""Stands in for bad luck: the training's nth start waits at the nth of PAUSE_AT's moments until a signal arrives there.

Moments are imports, validation, save and step (the end of an optimizer step); none does not wait. A file of the
moment's name in PAUSE_FOLDER says that it has come. Python reads this module at its start, from PYTHONPATH.
"""

import importlib.machinery
import os
import signal
import sys
import time
from pathlib import Path

PLACES = {
    "validation": ("retlab.training.module", "TrainingModule", "validation_loss"),
    "save": ("retlab.training.checkpoints", "CheckpointStore", "save"),
    "step": ("retlab.training.loop", "TrainingLoop", "on_train_batch_end"),
}


def pause(moment):
    """Wait for USR1 or TERM, which the handler of this process is given too; without a handler it is the end."""
    seen = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, lambda *words, handler=handler: (seen.append(words[0]), handler(*words)))
    (Path(os.environ["PAUSE_FOLDER"]) / moment).touch()
    end = time.monotonic() + 60
    while not seen and time.monotonic() < end:
        time.sleep(0.02)


class Wrapping:
    """Finds one module and puts a pause before the first call of one of its methods."""

    def __init__(self, moment):
        self.moment = moment
        self.module, self.owner, self.method = PLACES[moment]

    def find_spec(self, name, path, _target=None):
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def wrap(module):
            execute(module)
            owner = getattr(module, self.owner)
            original = getattr(owner, self.method)

            def first(*words, **named):
                setattr(owner, self.method, original)
                pause(self.moment)
                return original(*words, **named)

            setattr(owner, self.method, first)

        spec.loader.exec_module = wrap
        return spec


if any(word.endswith("train_model.py") for word in sys.orig_argv):
    moments = [*os.environ["PAUSE_AT"].split(","), *["none"] * 100]
    now = moments[int(os.environ.get("SLURM_RESTART_COUNT", "0"))]
    if now == "imports":
        pause(now)
    elif now in PLACES:
        sys.meta_path.insert(0, Wrapping(now))
