#!/usr/bin/env bash
# Make .venv and install the pinned requirements into it; quick when that is done already.
#   bash scripts/setup_environment.sh [test]
# With `test`, what the tests and linters need is installed too: for root also Debian's Slurm and Chromium, without which
# the tests that run a private Slurm or look at a page are skipped. PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

find_python() {
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and none was found; install it with: sudo apt-get install python3 python3-venv"
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# The CPU build of torch saves gigabytes where there is no GPU; its index is used only where it answers.
cpu_index=https://download.pytorch.org/whl/cpu
torch_index() {
  if ! has_nvidia_gpu && "$venv/bin/python" - "$cpu_index" <<'PY' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)
PY
  then
    printf '%s\n' --extra-index-url "$cpu_index"
  fi
}

install_programs() {
  local packages=()
  if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null || [ ! -d /usr/share/modules ]; then
    packages+=(slurm-wlm munge environment-modules)
  fi
  command -v chromium chromium-browser google-chrome >/dev/null || packages+=(chromium)
  [ "${#packages[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return; fi
  printf 'installing %s for the tests\n' "${packages[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq)
  { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; } </dev/null >/dev/null ||
    printf 'note: apt-get could not install %s; the tests that need it are skipped\n' "${packages[*]}" >&2
}

# What is installed is remembered by the content of the requirement files, so that a changed pin is installed.
kind=${1:-run}
[ "$kind" != test ] || install_programs
wanted_run=$(sha256sum < requirements.txt)
wanted_test=$(cat requirements.txt tests/requirements.txt | sha256sum)
wanted=wanted_$kind
if [ "$(cat "$venv/.installed-$kind" 2>/dev/null)" = "${!wanted}" ]; then
  exit 0
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "the venv module of $python is missing; install it with: sudo apt-get install python3-venv"
  printf 'making .venv with %s\n' "$("$python" --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
printf 'installing the pinned requirements into .venv (some minutes the first time)\n'
pip=("$venv/bin/python" -m pip --disable-pip-version-check -q)
mapfile -t index < <(torch_index)
install() {
  "${pip[@]}" install "$@" ||
    fail "pip could not install the requirements (its reason is above); mend that and run the same command again"
}
# torch first and alone: nothing else may choose another build of it.
install "${index[@]}" "$(grep '^torch==' requirements.txt)"
install -r requirements.txt
install --no-deps --editable .
if [ "$kind" = test ]; then
  install -r tests/requirements.txt
  # torchscale's own requirements would replace torch; the tests bring what little it needs of them.
  install --no-deps torchscale==0.3.0
  printf '%s\n' "$wanted_test" > "$venv/.installed-test"
fi
printf '%s\n' "$wanted_run" > "$venv/.installed-run"
