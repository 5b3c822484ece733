#!/usr/bin/env bash
# From a clean machine to two trained, compared models: bash scripts/quickstart.sh [key=value ...]
# Makes .venv, then runs every stage of configs/quickstart.yaml for a RetNet and for a Transformer of the same size.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$here/../configs/quickstart.yaml
# The environment of this checkout is the one to use, whatever is active.
unset VIRTUAL_ENV
bash "$here/setup_environment.sh"
bash "$here/run_pipeline.sh" "$config" "$@"
bash "$here/run_pipeline.sh" "$config" name=quickstart-transformer model.architecture=transformer \
  model.match_parameters_of=configs/quickstart.yaml "$@"
runs=$here/../runs
for word in "$@"; do
  case $word in
    output_dir=/*) runs=${word#*=} ;;
    output_dir=*) runs=$here/../${word#*=} ;;
  esac
done
bash "$here/run_stage.sh" compare_runs "$runs/quickstart-retnet" "$runs/quickstart-transformer"
