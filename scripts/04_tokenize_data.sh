#!/usr/bin/env bash
# Stage 4: the splits (all three, or those named) as token shards.
#   bash scripts/04_tokenize_data.sh CONFIG [train validation test] [key=value ...] [--force] [--verify]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" tokenize_data "$@"
