#!/usr/bin/env bash
# A video of every clip and photo of a folder; photos speak with the embedded voice.
#
#   bash test_demo.sh [GPU_IDS [EPOCH [HOW_MANY [DATAROOT]]]]     GPU_IDS: 0 or 0,1; -1: CPU; left out: a GPU if any
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
bash setup.sh || exit
gpu_ids=${1:-}
exec .venv/bin/python test_demo.py --name batch --dataset_mode facefore_demo --example \
    ${gpu_ids:+--gpu_ids "$gpu_ids"} --which_epoch "${2:-latest}" --how_many "${3:-10}" --dataroot "${4:-demo}" \
    --ref_img_id 0 --n_shot 1 --serial_batches
