"""Imported first by every script: while it loads what it needs, Ctrl-C ends it at once and without a traceback.

Python's own handler would raise in the middle of an import. `command` puts the scripts' handler in place later.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
