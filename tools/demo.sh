#!/usr/bin/env bash
# The main job on a real model and a real text: the command that `make demo` ends with.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${FOVEATE_CACHE:-$HOME/.cache/foveate}
text=book
[ -f "$cache/texts/book.txt" ] || text=articles
command=(build/release/foveate compare --model smollm2 --text "$text" --context 4096
  --attention dense --attention window:size=512,sinks=4 --attention dhsa:budget=512 --out out/demo)
echo "\$ ${command[*]}"
"${command[@]}"
echo "Open out/demo/compare.html in a browser."
