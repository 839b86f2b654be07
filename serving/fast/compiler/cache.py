"""Machine code on disk: whole, as it was written, and this user's own; or none at all.

What a file holds is linked into this process. So it carries a digest (a power cut or a full disk
leaves files that are cut or empty), and neither it nor its folder may be another user's to write.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

DIGEST = hashlib.sha256().digest_size
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def read(stem: str) -> bytes | None:
    """The code that was written under this name; None if there is none that can be trusted."""
    where = folder()
    if where is None:
        return None
    path = where / f"{stem}.o"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # of a pipe, too
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return None
            wrong = _others_can_write(found)
            content = file.read()
    except OSError:
        return None
    if wrong:
        _notice(f"{path} {wrong}: it is compiled anew")
        return None
    code, digest = content[:-DIGEST], content[-DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(stem: str, code: bytes) -> None:
    """Keeps code under a name, as a whole or not at all; says once where the disk refuses."""
    where = folder()
    if where is None:
        return
    made = ""
    try:
        handle, made = tempfile.mkstemp(dir=where, prefix=".kernel-", suffix=".o")
        with os.fdopen(handle, "wb") as file:
            file.write(code + hashlib.sha256(code).digest())
            file.flush()
            os.fsync(handle)  # a rename may reach the disk before the content does
        os.replace(made, where / f"{stem}.o")
        made = ""
    except OSError as error:
        _notice(f"can't keep machine code in {where}: {error.strerror}")
    finally:
        if made:
            with suppress(OSError):
                os.unlink(made)


@lru_cache(maxsize=1)
def folder() -> Path | None:
    """Where machine code lies; None, said once, if there is no folder that is this user's alone."""
    path, wrong = trusted()
    if not wrong:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _, wrong = trusted()
        except OSError as error:
            wrong = f"can't be made: {error.strerror}"
    if wrong:
        _notice(f"no machine code is kept: {path} {wrong}")
        return None
    return path


def trusted() -> tuple[Path, str]:
    """Where machine code would lie, and why it may not lie there; "" if it may."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.path.expanduser(base)) / "lengthwise" / "kernels"
    try:
        return path, _others_can_write(path.stat())
    except FileNotFoundError:
        return path, ""  # made when it is needed
    except OSError as error:
        return path, f"can't be made: {error.strerror}"


def _others_can_write(found: os.stat_result) -> str:
    """Why others than this user can change a file or folder; empty if they can't."""
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written to by other users (chmod go-w)" if found.st_mode & OTHERS else ""


_SAID: set[str] = set()


def _notice(line: str) -> None:
    """One line a process, whatever happens how often: runs go on, and only start slower."""
    if not _SAID:
        _SAID.add(line)
        warnings.warn(f"lengthwise: {line}", stacklevel=2)
