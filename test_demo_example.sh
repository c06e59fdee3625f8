#!/usr/bin/env bash
# From a clean clone to results/demo/test.mp4: sets up once (setup.sh), then animates the embedded portrait.
#
#   bash test_demo_example.sh [GPU_IDS [EPOCH [HOW_MANY]]]     GPU_IDS: 0 or 0,1; -1: CPU; left out: a GPU if any
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
bash setup.sh || exit
gpu_ids=${1:-}
exec .venv/bin/python test_demo_example.py --name demo --dataset_mode facefore_demo \
    ${gpu_ids:+--gpu_ids "$gpu_ids"} --which_epoch "${2:-latest}" --how_many "${3:-1}" \
    --ref_video_path demo/portrait.png --audio_path demo/voice.flac --results_dir results
