#!/usr/bin/env bash
# What of an experiment is done, running, waiting or failed, and what remains: bash slurm/status.sh CONFIG [key=value ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../scripts/run_stage.sh" show_status "$@"
