#!/usr/bin/env bash
#SBATCH --job-name=evaluate_model
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# Stage 6 as a Slurm job: what evaluate.measure lists, of the trained or another model.
#   bash slurm/06_evaluate_model.sh CONFIG [key=value ...] [-- words for sbatch]    submits it as the section cluster says
#   sbatch [words for sbatch] slurm/06_evaluate_model.sh CONFIG [key=value ...]     runs it in the job that these words make
# Whatever Slurm says while this starts is heard.
trap 'told=USR1' USR1
# Slurm runs a copy of this file from a folder of its own; the checkout is where the original is.
here=$(dirname "${BASH_SOURCE[0]}")
if [ ! -f "$here/job.sh" ]; then
  original=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=\(.*\)/06_evaluate_model\.sh.*|\1|p')
  for here in "${RETLAB_ROOT:-}/slurm" "$original" "${SLURM_SUBMIT_DIR:-}/slurm" "${SLURM_SUBMIT_DIR:-}"; do
    if [ -f "$here/job.sh" ]; then break; fi
  done
fi
. "$here/job.sh" || { echo "error: slurm/job.sh is not found; export RETLAB_ROOT, the folder of RetLab" >&2; exit 2; }
run_as_job evaluate_model "$@"
