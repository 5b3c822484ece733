#!/usr/bin/env bash
# Run one stage with the project's Python: bash scripts/run_stage.sh STAGE CONFIG [key=value ...] [--force] [--verify]
# The Python of an active virtual environment comes first, then .venv beside this folder, then python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ ! -f "$root/src/${1:-}.py" ]; then
  echo "error: name a stage first: bash scripts/run_stage.sh train_model CONFIG [key=value ...]" >&2
  exit 2
fi
stage=$1
shift
if [ -n "${VIRTUAL_ENV:-}" ]; then
  python=$VIRTUAL_ENV/bin/python
elif [ -x "$root/.venv/bin/python" ]; then
  python=$root/.venv/bin/python
else
  python=python3
fi
# A library near the end of the list stands for all of them.
if ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("codecarbon") is None)'; then
  echo "error: $python has not what RetLab needs; run: bash $root/scripts/setup_environment.sh," >&2
  echo "which makes .venv, and leave any other environment with: deactivate" >&2
  exit 2
fi
exec "$python" "$root/src/$stage.py" "$@"
