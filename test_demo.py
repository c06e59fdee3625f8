"""Make a video of every clip and photo of a folder."""

from __future__ import annotations

from options import parse_test
from util.errors import run_script


def main() -> None:
    """Parse, make the videos, print each one's path."""
    options = parse_test()
    if options.ready():
        from talking_head import make_videos  # after parsing: --help and refusals need no torch

        for path in make_videos(options):
            print(path, flush=True)


if __name__ == "__main__":
    run_script(main)
