"""Options: `parse_demo`, `parse_test`, `parse_train`, `parse_preprocess` make a command line a frozen dataclass."""

from __future__ import annotations

from options.base import ScriptOptions
from options.preprocess import PreprocessOptions
from options.scripts import DemoOptions, TestOptions, TrainOptions

parse_demo = DemoOptions.parse
parse_test = TestOptions.parse
parse_train = TrainOptions.parse
parse_preprocess = PreprocessOptions.parse

__all__ = [
    "DemoOptions",
    "PreprocessOptions",
    "ScriptOptions",
    "TestOptions",
    "TrainOptions",
    "parse_demo",
    "parse_preprocess",
    "parse_test",
    "parse_train",
]
