#!/usr/bin/env python3
"""Write an HTML page from which a person sees whether a data set was prepared well.

    python scripts/inspect_data.py OUT

OUT is a folder that scripts/preprocess.py made, or one prepared by the public code (with --dataset_name).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from util.errors import UserError, run_script

MAX_CLIPS = 200  # about 300 kB of the page each


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises UserError for a number out of range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", metavar="OUT", help="the prepared folder")
    parser.add_argument(
        "--clips",
        type=int,
        default=12,
        help="clips drawn by chance; the worst by some measures come on top (default: 12)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another number draws other clips (default: 0)")
    parser.add_argument("--split", default="all", help="train, test, dev or all (default: all)")
    parser.add_argument("--page", help="the page (default: OUT/inspect/index.html)")
    parser.add_argument(
        "--dataset_name",
        choices=("vox", "lrs", "grid", "crema", "folder"),
        default="folder",
        help="how the files are named; only for data prepared by the public code, which has no index",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.clips <= MAX_CLIPS:
        raise UserError(f"--clips {args.clips}: choose 0 to {MAX_CLIPS}")
    return args


def main() -> None:
    """Parse, look, say where the page is and which clips could not be shown."""
    args = read_arguments()
    from data.inspection.folder import prepared_folder
    from data.inspection.page import PagePlan, write_page
    from util.files import results_folder

    folder = prepared_folder(args.out, args.dataset_name, args.split)
    page = Path(args.page or folder.root / "inspect" / "index.html")
    results_folder(page.parent, "--page")  # a full or locked disk shows before the work
    broken = write_page(folder, PagePlan(args.clips, args.seed, args.split), page)
    told = f"; {len(broken)} clips cannot be shown, the page says why" if broken else ""
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB{told}")


if __name__ == "__main__":
    run_script(main)
