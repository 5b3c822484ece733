#!/usr/bin/env bash
# Stage 6: loss, perplexity and bits per byte of the model on the test split, and samples.
#   bash scripts/06_evaluate_model.sh CONFIG [key=value ...] [--force] [--verify]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" evaluate_model "$@"
