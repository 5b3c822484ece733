#!/usr/bin/env bash
# Set up all that the tests need and run them: bash scripts/run_tests.sh [pytest arguments]
# `-m "not component"` runs the unit tests alone.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
unset VIRTUAL_ENV
bash "$root/scripts/setup_environment.sh" test
cd "$root"
export PATH=$root/.venv/bin:$PATH
ruff check src tests
ruff format --check src tests
mypy
# One torch thread for each of the test processes: they run side by side. (nproc would count OMP_NUM_THREADS.)
processors=$(env -u OMP_NUM_THREADS nproc)
# Half as many again: tests of jobs, kills and signals wait for half of their time.
workers=$((processors + (processors + 1) / 2))
export OMP_NUM_THREADS=1
exec python -m pytest -n "$workers" --dist worksteal "$@"
