#!/usr/bin/env bash
# The method's training command, on VoxCeleb2.
#
#   bash train_g8.sh [GPU_IDS [DATAROOT]]     GPU_IDS: 0 or 0,1; -1: CPU; left out: a GPU if any
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
bash setup.sh || exit
gpu_ids=${1:-}
exec .venv/bin/python train.py --name face8_vox_new --dataset_mode facefore \
    --adaptive_spade --warp_ref --warp_ani --spade_combine --add_raw_loss \
    ${gpu_ids:+--gpu_ids "$gpu_ids"} --batchSize 4 --nThreads 8 --niter 1000 --niter_single 1001 \
    --n_shot 8 --n_frames_G 1 \
    --dataroot "${2:-voxceleb2}" --dataset_name vox --save_epoch_freq 1 --display_freq 5000 \
    --continue_train --use_new --crop_ref
