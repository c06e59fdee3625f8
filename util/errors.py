"""Errors that a user can mend: one line naming the flag or file, what was found, what is needed, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. Scripts print the message as one line on stderr and exit with status 2."""


class ShapeError(UserError):
    """An array of another shape than the one asked for."""

    def __init__(self, name: str, expected: str, actual: tuple[int, ...]) -> None:
        super().__init__(f"{name}: shape {tuple(actual)}, needed {expected}")
        self.expected, self.actual = expected, tuple(actual)


class DamagedError(UserError):
    """A file of which more parts are broken than are put up with."""


def remark(text: str) -> None:
    """Tell the user, in one line on stderr, of a choice that was made for them."""
    print(f"note: {text}", file=sys.stderr)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`, turning a UserError into one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
