#!/usr/bin/env python3
"""Fetch the public FlowNet2 checkpoint (620 MB) and convert it, for the best flow teacher when training.

    python scripts/download_flownet2.py
    python scripts/download_flownet2.py --url https://a.mirror/FlowNet2_checkpoint.pth.tar --sha256 SUM
    python scripts/download_flownet2.py --file ~/Downloads/FlowNet2_checkpoint.pth.tar

Start it again to resume. The weights are their authors' and for research only; see third_party/flownet2/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from third_party.flownet2.convert import convert
from third_party.flownet2.download import PUBLIC_NAME, PUBLIC_URL, fetch
from util.checkpoints import checkpoint_path
from util.errors import run_script

DOWNLOADED = Path(__file__).resolve().parents[1] / "cache" / PUBLIC_NAME


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--url", default=PUBLIC_URL, help="where the checkpoint is (default: the authors' place)"
    )
    parser.add_argument("--file", type=Path, help="a checkpoint that you have; nothing is fetched then")
    parser.add_argument("--sha256", help="the sum that the fetched file must have")
    parser.add_argument("--download_to", type=Path, default=DOWNLOADED, help="%(default)s")
    parser.add_argument(
        "--out", type=Path, default=checkpoint_path("flownet2.safetensors"), help="%(default)s"
    )
    args = parser.parse_args()
    source = args.file or fetch(args.url, args.download_to, args.sha256)
    convert(source, args.out, flag="--file" if args.file else "--download_to")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main)
