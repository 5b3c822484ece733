#!/usr/bin/env bash
# Run one stage with the project's Python: bash scripts/run_stage.sh STAGE CONFIG [key=value ...] [--force] [--verify]
# The Python of an active virtual environment comes first, then .venv beside this folder, then python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stage=$1
shift
if [ -n "${VIRTUAL_ENV:-}" ]; then
  python=$VIRTUAL_ENV/bin/python
elif [ -x "$root/.venv/bin/python" ]; then
  python=$root/.venv/bin/python
else
  python=python3
fi
exec "$python" "$root/src/$stage.py" "$@"
