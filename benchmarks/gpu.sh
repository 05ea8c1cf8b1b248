#!/usr/bin/env bash
# All that is measured on a GPU, in less than eight minutes on a current one; from the folder of the
# project, with the package installed for tests: benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
failed=0
step() { echo; echo "== $*"; timeout 150 "$@" || { echo "failed: $? ($*)"; failed=1; }; }
# CUDA itself raises where a recorded step makes the host wait.
step python -m pytest -q -rs -p no:cacheprovider tests/recording/test_meters.py \
  tests/ablation/test_training.py tests/recording/test_gpu.py tests/ablation/test_gpu.py \
  -k "synchronis or device or gpu or GPU"
step python benchmarks/recorder_overhead.py --workload hw5net-32 resnet50-8 gpt-4 \
  --recorder gradscope-norms gradscope-all --rounds 9 --steps 6
step python benchmarks/packing.py
exit $failed
