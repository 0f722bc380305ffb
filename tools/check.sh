#!/usr/bin/env bash
# Everything that must hold before a change is accepted: generated code, style, types,
# layers, sizes, tests, coverage. Run it from anywhere, as any user; tests that need root
# or a Docker Engine skip and say so. Arguments go to pytest.
#
#   PYTHON=...   the interpreter of the environment to use (default: .venv/bin/python)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
if [ ! -x "$python" ]; then
  echo "no $python: make the environment first, see README.md" >&2
  exit 1
fi
bin=$(dirname "$python")
lint_imports=()
scratch=$(mktemp -d /tmp/swarmlet-check.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

# A checkout that belongs to somebody else is only read.
if [ ! -w . ]; then
  export PYTHONDONTWRITEBYTECODE=1 RUFF_CACHE_DIR=$scratch/ruff MYPY_CACHE_DIR=$scratch/mypy
  export HYPOTHESIS_STORAGE_DIRECTORY=$scratch/hypothesis
  lint_imports=(--no-cache)
  set -- -p no:cacheprovider "$@"
fi
export COVERAGE_FILE=$scratch/coverage

step() { printf '== %s\n' "$*"; }

step "generated code is current"
"$python" tools/generate_api.py --check

step "ruff"
"$bin/ruff" check
"$bin/ruff" format --check

step "mypy"
"$bin/mypy"

step "layers"
"$bin/lint-imports" "${lint_imports[@]}"

step "no file over 600 lines"
long=$(find swarmlet -name '*.py' -not -path 'swarmlet/api/v1/*' -exec awk 'END { if (NR > 600) print FILENAME ": " NR }' {} \;)
if [ -n "$long" ]; then
  printf 'split these files:\n%s\n' "$long" >&2
  exit 1
fi

step "tests"
"$python" -m pytest --cov=swarmlet --cov-report= "$@" | tee "$scratch/pytest.log"

# A run of chosen tests says nothing about coverage.
if [ "${CHECK_COVERAGE:-1}" = 1 ]; then
  for room in "api" "store" "manager/orchestrator" "manager/scheduler" "manager/allocator"; do
    step "coverage of $room"
    "$bin/coverage" report --include="swarmlet/$room/*" --omit='swarmlet/api/v1/*' --fail-under=90
  done
  tail -n 1 "$scratch/pytest.log"
fi
