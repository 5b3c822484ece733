#!/usr/bin/env bash
# Stage 7: every point of a grid with every architecture and seed: trials, tables and plots.
#   bash scripts/07_grid_search.sh CONFIG [key=value ...] [--plan] [--skip-invalid] [--retry-failed]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" grid_search "$@"
