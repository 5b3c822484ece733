#!/usr/bin/env bash
# Stage 2: the documents as train, validation and test split.
#   bash scripts/02_split_data.sh CONFIG [key=value ...] [--force] [--verify]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" split_data "$@"
