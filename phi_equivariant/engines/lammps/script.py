"""An ordinary LAMMPS input, run with a pause wherever it makes the fix that asks for Φ's forces."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi_equivariant.engines.lammps.fix_external import FIX, LINE
from phi_equivariant.errors import InputError

_FIX_LINE = re.compile(rf"\s*fix\s+{FIX}\s+(?P<group>\S+)\s+external\s+(?P<rest>[^#]*)")
_PAUSE = "phi_pause"


def run_script(lammps: Any, path: Path, attach: Callable[[Any], None]) -> None:
    """Run an input; after each ``fix phi all external pf/callback 1 1`` call attach(lammps).

    LAMMPS reads a copy, in which that line is followed by a jump to a file that ends at once, and a label to go on at:
    loops, ``jump SELF``, ``clear`` and ``if`` work as ever, whether they go over the line again or not.

    Parameters
    ----------
    lammps: LAMMPS object, the same on all processes
    path: the input
    attach: function of the LAMMPS object

    Raises
    ------
    InputError
        If the file is not there, or the line is not in it, or in another form, and for an error of LAMMPS, with its
        message.
    """
    lines = _read(path)
    with tempfile.TemporaryDirectory(prefix="phi_lammps_") as made:  # that of the first process is what is read
        folder = Path(made)
        copy, end = folder / path.name, folder / "pause"
        n_pauses = _write(lines, copy, end)
        found, reading = 0, copy
        while True:
            _read_by(lammps, reading)
            pause = lammps.extract_variable(_PAUSE) if _PAUSE in lammps.available_ids("variable") else None
            if pause is None:
                break
            lammps.command(f"variable {_PAUSE} delete")
            attach(lammps)
            found, reading = found + 1, folder / f"resume_{int(float(pause))}"
        assert found or n_pauses


def _read_by(lammps: Any, path: Path) -> None:
    try:
        lammps.file(str(path))
    except Exception as error:  # LAMMPS' errors have no class of their own
        raise InputError(f"LAMMPS stopped with {str(error).strip()}") from error


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the input {path} cannot be read: {error}.") from error
    matches = [match for match in map(_FIX_LINE.match, lines) if match]
    if not matches:
        raise InputError(
            f"{path} has no line '{LINE}'; add it after the atoms are there and before the first run or minimize."
        )
    for match in matches:
        if match["group"] != "all" or match["rest"].split() != ["pf/callback", "1", "1"]:
            raise InputError(f"{path} has the line '{match[0].strip()}'; write it as '{LINE}'.")
    return lines


def _write(lines: list[str], copy: Path, end: Path) -> int:
    """The copy, and for each pause a file that ends at once and one that goes on after it."""
    written, n_pauses = [], 0
    for line in lines:
        written.append(line)
        if not _FIX_LINE.match(line):
            continue
        label = f"phi_resume_{n_pauses}"
        pause = end.with_name(f"pause_{n_pauses}")
        pause.write_text(f"variable {_PAUSE} string {n_pauses}\n")
        end.with_name(f"resume_{n_pauses}").write_text(f"jump {copy} {label}\n")
        written += [f"jump {pause}", f"label {label}"]
        n_pauses += 1
    copy.write_text("\n".join(written) + "\n", encoding="utf-8")
    return n_pauses
