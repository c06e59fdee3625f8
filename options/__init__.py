"""Options: `parse_demo`, `parse_test` and `parse_train` turn a command line into a frozen dataclass."""

from __future__ import annotations

from options.base import ScriptOptions
from options.scripts import DemoOptions, TestOptions, TrainOptions

parse_demo = DemoOptions.parse
parse_test = TestOptions.parse
parse_train = TrainOptions.parse

__all__ = [
    "DemoOptions",
    "ScriptOptions",
    "TestOptions",
    "TrainOptions",
    "parse_demo",
    "parse_test",
    "parse_train",
]
