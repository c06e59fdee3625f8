#!/usr/bin/env bash
# Sets up what the tests need, lints and tests. Arguments go to pytest: bash run_tests.sh tests/test_io_video.py
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
bash setup.sh --dev || exit
.venv/bin/python -m ruff check . || exit
.venv/bin/python -m ruff format --check . || exit
# On few cores the small matrices of the tests are slower with several threads than with one.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
exec .venv/bin/python -m pytest "$@"
