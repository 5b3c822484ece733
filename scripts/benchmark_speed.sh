#!/usr/bin/env bash
# Speed and memory of RetLab and of the peers that are installed, in one run: a table, CSV and a plot.
#   bash scripts/benchmark_speed.sh [CONFIG [key=value ...]] [--device cpu] [--peers NAMES] [--output FOLDER]
#   bash scripts/benchmark_speed.sh [CONFIG [key=value ...]] --devices 2
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_stage.sh" benchmark_speed "$@"
