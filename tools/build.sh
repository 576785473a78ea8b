#!/usr/bin/env bash
# Configures and builds a preset of CMakePresets.json against the torch in .venv.
#   tools/build.sh [PRESET] [tests]      without `tests`: the library and the command line alone
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
tests=OFF
[ "${2:-}" = tests ] && tests=ON
torch=$(.venv/bin/python -c 'import torch; print(torch.utils.cmake_prefix_path)')
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cmake --preset "$preset" -DCMAKE_PREFIX_PATH="$torch" -DPython3_EXECUTABLE="$PWD/.venv/bin/python" \
  -DFOVEATE_TESTS=$tests ${CI:+-DFOVEATE_WERROR=ON} >"$log" 2>&1; then
  cat "$log" >&2
  exit 2
fi
cmake --build "build/$preset" -- -j "$(nproc)"
