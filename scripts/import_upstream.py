#!/usr/bin/env python3
"""Turn a public weight file into a checkpoint of ours, and say what it was trained with.

    python scripts/import_upstream.py --weights checkpoints/face8_vox_new/latest_net_G.pth

Writes checkpoints/face8_vox_new/upstream_G.safetensors (upstream_D for latest_net_D.pth). Nothing in the file is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.upstream import import_upstream
from util.errors import run_script


def main() -> None:
    """Parse, import, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--weights", required=True, help="latest_net_G.pth or latest_net_D.pth")
    parser.add_argument("--out", help="the checkpoint (default: checkpoints/FOLDER/upstream_G.safetensors)")
    parser.add_argument("--no_warp", action="store_true", help="the generator was trained with --no_warp")
    parser.add_argument(
        "--no_raw", action="store_true", help="leave out the image before composition: faster"
    )
    parser.add_argument("--old_torch", action="store_true", help="it was trained under torch before 1.3")
    args = parser.parse_args()
    unrecorded = {
        "warped": not args.no_warp,
        "add_raw_loss": not args.no_raw,
        "align_corners": args.old_torch,
    }
    print(import_upstream(args.weights, args.out, **unrecorded))


if __name__ == "__main__":
    run_script(main)
