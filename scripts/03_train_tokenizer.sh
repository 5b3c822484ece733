#!/usr/bin/env bash
# Stage 3: a byte-level BPE tokenizer from the train split.
#   bash scripts/03_train_tokenizer.sh CONFIG [key=value ...] [--force] [--verify]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" train_tokenizer "$@"
