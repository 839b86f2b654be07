"""Files that a user names: read with a limit, and whatever is wrong with one is one line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError

MOST_BYTES = 64 * 2**20  # of a file that describes something: far above any


def plain_bytes(path: Path, what: str, most: float = float("inf")) -> bytes:
    """The content of a plain file of at most ``most`` bytes.

    ``what`` is what messages call it ("profile"). Raises ``InputError`` for a pipe or device, which
    may never end, and for what can't be read; ``FileNotFoundError`` stays as it is.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{what} {str(path)!r} is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{what} {str(path)!r} is a pipe or a device, not a file")
        if found.st_size > most:
            raise InputError(
                f"{what} {str(path)!r} has {found.st_size} bytes; {most:.0f} are the most"
            )
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a name with a null byte
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{what} {str(path)!r} can't be read: {why}") from None


def read_described(path: Path, what: str, parse: Callable[[str], Any] = json.loads) -> Any:
    """The JSON in a file, or what ``parse`` makes of its text; ``InputError`` where it can't.

    It can't of text that is nested too deeply, or holds numbers of thousands of digits.
    """
    try:
        text = plain_bytes(path, what, MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{what} {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {str(path)!r} is not UTF-8 text (byte {error.start})") from None
    try:
        return parse(text)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:
        why = str(error)
    raise InputError(f"{what} {str(path)!r} can't be read: {why}")


def whole_number(given: object, what: str, least: int, most: int | None = None) -> int:
    """A whole number of a user's; ``InputError`` where it is none, or not from ``least`` to
    ``most`` (None: any). ``what`` begins the message.
    """
    if (
        not isinstance(given, int)
        or isinstance(given, bool)
        or given < least
        or (most is not None and given > most)
    ):
        to = "" if most is None else f" to {most}"
        raise InputError(f"{what} must be a whole number from {least}{to}, not {given!r}")
    return given
