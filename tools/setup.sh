#!/usr/bin/env bash
# Installs what building foveate needs and says why; prints the one command to run where it may not install.
#   tools/setup.sh [build|test]      test adds what only the tests need
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:-build}

# Debian package -> what it is for (file or command that shows it is there)
missing=()
need() {  # need PACKAGE WHY TEST...
  local package=$1 why=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    echo "setup: $package is missing ($why)"
    missing+=("$package")
  fi
}
has_header() { printf '#include <%s>\n' "$1" | g++ -x c++ -fsyntax-only -; }
has_venv() { python3 -c 'import ensurepip, venv'; }

need g++ "C++20 compiler" g++ --version
need cmake "build" cmake --version
need ninja-build "build" ninja --version
need ccache "repeated builds: torch's headers are slow to compile" ccache --version
need python3-venv "a place for torch beside the project" has_venv
need libcli11-dev "command line" has_header CLI/CLI.hpp
need nlohmann-json3-dev "JSON" has_header nlohmann/json.hpp
need libpcre2-dev "Unicode-aware patterns of tokenizers" sh -c 'printf "#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n" | g++ -x c++ -fsyntax-only -'
need libutf8proc-dev "normal forms, case and categories of Unicode, for tokenizers" has_header utf8proc.h
need zlib1g-dev "data sets packed by gzip" has_header zlib.h
need libpng-dev "images" has_header png.h
need libjpeg62-turbo-dev "images" sh -c 'printf "#include <cstdio>\n#include <jpeglib.h>\n" | g++ -x c++ -fsyntax-only -'
if [ "$wanted" = test ]; then
  need libgtest-dev "tests" has_header gtest/gtest.h
  need clang-format "format check" clang-format --version
fi

retry() {
  for wait in 5 20 60; do
    "$@" && return 0
    echo "setup: '$1' failed, again in $wait s"
    sleep "$wait"
  done
  "$@"
}

if [ ${#missing[@]} -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "setup: this is no Debian-type machine; please install these (or your system's equals): ${missing[*]}" >&2
    exit 2
  elif [ "$(id -u)" = 0 ]; then
    sudo=
  elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
  else
    echo "setup: root may install packages, you may not; please run:  sudo sh -c 'apt-get update && $install'" >&2
    exit 2
  fi
  retry $sudo apt-get update -q
  DEBIAN_FRONTEND=noninteractive retry $sudo $install
fi

python3 - <<'PY'
import sys
if sys.version_info < (3, 10):
    sys.exit(f"setup: Python >= 3.10 is needed, found {sys.version.split()[0]}")
PY
if [ ! -x .venv/bin/python ]; then
  echo "setup: making .venv, a Python environment of the project's own"
  python3 -m venv .venv
fi

wants() { .venv/bin/python tools/installed.py "$1"; }
if ! wants requirements.txt; then
  echo "setup: installing requirements.txt (torch: tensors, gradients, matrix products)"
  retry .venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
fi
if [ "$wanted" = test ] && ! wants requirements-test.txt; then
  echo "setup: installing requirements-test.txt (independent implementations that the tests compare with)"
  retry .venv/bin/pip install -q --disable-pip-version-check -r requirements-test.txt
fi
if [ "$wanted" = test ] && ! .venv/bin/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("timm") is None)'; then
  echo "setup: installing timm (the tests' reference of halo attention) without torchvision, which they do not need"
  retry .venv/bin/pip install -q --disable-pip-version-check --no-deps timm==1.0.31
fi
