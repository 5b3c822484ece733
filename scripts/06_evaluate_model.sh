#!/usr/bin/env bash
# Stage 6: what evaluate.measure lists: perplexity, samples, tasks of lm-eval, latency; of the trained or another model.
#   bash scripts/06_evaluate_model.sh CONFIG [key=value ...] [--force] [--verify] [--json]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" evaluate_model "$@"
