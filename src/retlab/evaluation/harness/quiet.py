"""The harness and its libraries without their bars and reports; what their warnings say is kept."""

import contextlib
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

import datasets

from retlab.evaluation.trained_model import quiet_transformers

# Never closed, since code of tasks may keep it as its standard output.
_NOWHERE = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class Quiet:
    """Where the output of the harness goes, and where that of RetLab goes meanwhile."""

    def __init__(self) -> None:
        self._streams: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
        self.warnings: Counter[str] = Counter()
        "Warnings of the harness with their numbers left out, and how often each came."

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Nothing that is printed in the block is seen; warnings of the harness are counted."""
        self._streams = (sys.stdout, sys.stderr)
        logger, handler = logging.getLogger("lm_eval"), _Counting(self.warnings)
        spreads, bars, level = logger.propagate, datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
        logger.addHandler(handler)
        logger.propagate = False
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        try:
            with contextlib.redirect_stdout(_NOWHERE), contextlib.redirect_stderr(_NOWHERE), quiet_transformers():
                yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = spreads
            datasets.logging.set_verbosity(level)
            if bars:
                datasets.enable_progress_bars()

    @contextlib.contextmanager
    def aloud(self) -> Iterator[None]:
        """What is opened in the block, inside `silence`, writes where it would without."""
        out, err = self._streams
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield


class _Counting(logging.Handler):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self._counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        self._counts[re.sub(r"\d+", "#", " ".join(record.getMessage().split()))] += 1
