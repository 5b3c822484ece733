"""Imported first by every script: what can go wrong before its libraries are there ends it with a sentence.

Ctrl-C ends it at once, where Python's own handler would raise in the middle of an import; `command` puts the scripts'
handler in place later. A Python that lacks the libraries is told, as it mostly is the wrong one.
"""

import importlib.util
import signal
import sys

from retlab.errors import EXIT_USER_ERROR

signal.signal(signal.SIGINT, signal.SIG_DFL)

LIBRARIES = ("pydantic", "yaml", "tqdm", "psutil", "pyarrow", "torch", "transformers")
"""What no script does without, by the names that are imported."""

missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
if missing:
    print(
        f"error: {sys.executable} has not what RetLab needs ({', '.join(missing)}); activate the environment that has,"
        " source .venv/bin/activate in RetLab's folder, or make it first: bash scripts/setup_environment.sh",
        file=sys.stderr,
    )
    sys.exit(EXIT_USER_ERROR)
