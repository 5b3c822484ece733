#!/usr/bin/env bash
# All stages of one experiment, in order; what is up to date is left as it is.
#   bash scripts/run_pipeline.sh CONFIG [key=value ...] [--force] [--verify]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/run_child.sh"
for word in "$@"; do
  case $word in -h | --help) exec sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" ;; esac
done
# Everything that is wrong with the configuration is said before the first stage starts.
run_child bash "$here/run_stage.sh" check_config "$@" --quiet
for script in "$here"/0[1-6]_*.sh; do
  run_child bash "$script" "$@"
done
