#!/usr/bin/env bash
# From a clean machine to two trained, compared models: bash scripts/quickstart.sh [key=value ...]
# Makes .venv, then runs every stage of configs/quickstart.yaml for a RetNet and for a Transformer of the same size.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/run_child.sh"
config=$here/../configs/quickstart.yaml
runs=$here/../runs
for word in "$@"; do
  case $word in
    -h | --help) exec sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" ;;
    output_dir=/*) runs=${word#*=} ;;
    output_dir=*) runs=$here/../${word#*=} ;;
    name=*)
      echo "error: the quickstart names its two runs itself; leave out $word" >&2
      exit 2
      ;;
  esac
done
# The environment of this checkout is the one to use, whatever is active.
unset VIRTUAL_ENV
run_child bash "$here/setup_environment.sh"
run_child bash "$here/run_pipeline.sh" "$config" "$@"
# The run and not its configuration is what to match: the words of this command line may have changed its size.
run_child bash "$here/run_pipeline.sh" "$config" "$@" name=quickstart-transformer model.architecture=transformer \
  "model.match_parameters_of=$runs/quickstart-retnet"
run_child bash "$here/run_stage.sh" compare_runs "$runs/quickstart-retnet" "$runs/quickstart-transformer"
