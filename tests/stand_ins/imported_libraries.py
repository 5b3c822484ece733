"""What a process imports once, for the scripts that are forked from it (tests/forked.py)."""

import gc
import importlib

for name in (
    "config_model", "command", "stage", "upstream", "machine_checks", "data.download", "data.split", "data.tokens",
    "training.trainer", "training.export", "evaluation.scoring", "evaluation.samples",
):  # fmt: skip
    importlib.import_module(f"retlab.{name}")
# Collecting garbage would copy the memory of all these modules into every process.
gc.freeze()
