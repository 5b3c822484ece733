"""Run a stage script as an ordinary user: python tests/stand_ins/as_nobody.py SCRIPT CONFIG ...

The uid is dropped after the imports, because the interpreter itself may lie where only root may read.
"""

import os
import runpy
import sys

NOBODY = 65534

script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(script))
names = runpy.run_path(script, run_name="stage")
sys.modules["__main__"].__doc__ = names["__doc__"]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
names["run_stage"](names["main"])
