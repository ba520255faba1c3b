"""Files of a model: their names, JSON that is read with care, and writing so that each is there whole or not at all."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi_equivariant.errors import InputError

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
CONFIG_LIMIT = 4 << 20  # bytes
#: errno of a disk that is full, or that one may not write to.
UNUSABLE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)`` and move the result into place; nothing is left behind if that fails.

    A link stays one: what it points to is written. InputError for anything there that is not a file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file, and is not replaced by one. Name another.")
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        if error.filename == str(temporary):  # a name that no user has typed
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, option: str) -> None:
    """InputError, naming the option, unless a file can be written at a path, in place of an earlier one perhaps."""
    folder = path.resolve().parent
    special = path.exists() and not path.is_file()
    if special or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{option}: {path} cannot be written; give a file in a folder that exists.")


def read_json(path: Path, limit: int, what: str = "JSON file") -> Any:
    """A JSON file of at most ``limit`` bytes.

    Raises
    ------
    InputError
        If it is missing, too large, nested too deeply, or not JSON; NaN and infinity are not.
    """
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path} has {path.stat().st_size} bytes; more than {limit} are not read.")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a {what} that can be read ({type(error).__name__}: {error}).") from error


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")
