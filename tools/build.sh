#!/usr/bin/env bash
# Configures (once) and builds a preset of CMakePresets.json against the torch in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
if [ ! -f "build/$preset/build.ninja" ]; then
  torch=$(.venv/bin/python -c 'import torch; print(torch.utils.cmake_prefix_path)')
  echo "build: configuring $preset"
  cmake --preset "$preset" -DCMAKE_PREFIX_PATH="$torch" -DPython3_EXECUTABLE="$PWD/.venv/bin/python" >"build-$preset.log" 2>&1 || {
    cat "build-$preset.log" >&2
    rm -f "build-$preset.log"
    exit 2
  }
  rm -f "build-$preset.log"
fi
cmake --build "build/$preset" -- -j "$(nproc)"
