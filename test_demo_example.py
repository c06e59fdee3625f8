"""Make one talking-head video: a portrait or clip, driven by a voice, a clip, or both."""

from __future__ import annotations

from options import parse_demo
from util.errors import run_script


def main() -> None:
    """Parse, make the video, print its path as the last line."""
    options = parse_demo()
    if options.ready():
        from talking_head import make_video  # after parsing: --help and refusals need no torch

        print(make_video(options))


if __name__ == "__main__":
    run_script(main)
