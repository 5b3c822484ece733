#!/usr/bin/env bash
# Stage 1: text from this Python, from files or from the Hub, as parquet.
#   bash scripts/01_download_data.sh CONFIG [key=value ...] [--force] [--verify]
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" download_data "$@"
