#!/usr/bin/env bash
# Submit the stages 1 to 6 as a chain of jobs: each starts when the one before has succeeded, and never if it failed.
#   bash slurm/submit_pipeline.sh CONFIG [key=value ...] [--from train_model] [-- words for sbatch]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../scripts/run_stage.sh" submit_jobs "$@"
