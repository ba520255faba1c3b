"""Writing files so that each is there whole or not at all."""

import os
from pathlib import Path


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
