"""Writing files so that each is there whole or not at all."""

import errno
import os
from pathlib import Path

#: errno of a disk that is full, or that one may not write to.
UNUSABLE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


def write_atomically(path, write):
    """Call ``write(temporary path)`` and move the result into place; nothing is left behind if that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
