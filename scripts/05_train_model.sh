#!/usr/bin/env bash
# Stage 5: the model, from token shards to a Hugging Face folder.
#   bash scripts/05_train_model.sh CONFIG [key=value ...] [--force] [--verify]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" train_model "$@"
