"""``phi-lammps``: runs a LAMMPS input with a trained potential, on one process or many."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from phi_equivariant.errors import InputError, did_you_mean
from phi_equivariant.version import __version__

_EPILOG = """The input is an ordinary one with one line more, after the atoms are there and before the first run:

    fix phi all external pf/callback 1 1

What else is on the command line (-var T 300, -log FILE, -screen none, ...) goes to LAMMPS."""


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"{self.prog}: {message}{end} See {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = _Parser(
        "phi-lammps",
        description="Run a LAMMPS input with a trained potential: [mpirun -np N] phi-lammps -in FILE --model RUN ...",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("-in", "-i", dest="input", metavar="FILE", type=Path, required=True, help="LAMMPS input")
    made.add_argument("--model", required=True, help="folder of a saved model or a run, or a name of the zoo")
    made.add_argument("--elements", nargs="+", required=True, metavar="X", help="element of each type, in order")
    made.add_argument("--total_charge", type=float, default=0.0, metavar="Q", help="in e (default: 0)")
    made.add_argument("--total_spin", type=float, metavar="M", help="spin multiplicity, for hosts that embed it")
    made.add_argument(
        "--external_field",
        type=float,
        nargs=3,
        metavar=("FX", "FY", "FZ"),
        help="in V/Å, not along periodic directions",
    )
    made.add_argument("--dtype", choices=("float32", "float64"), help="precision (default: the model's own)")
    made.add_argument("--device", default="cpu", help="cpu, cuda (one device a process in turn), cuda:1 (default: cpu)")
    made.add_argument("--head", help="head of the host, for hosts with several")
    made.add_argument("--version", action="version", version=f"phi-lammps {__version__}")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the status is 0, 2 for wrong input on one process, and 1 after all processes were ended."""
    made = parser()
    options, of_lammps = made.parse_known_args(arguments)
    known = [word for action in made._actions for word in action.option_strings]
    for word in of_lammps:
        if word.startswith("--"):  # LAMMPS has options of one dash only
            hint = did_you_mean(word, known, "What LAMMPS takes begins with one dash.")
            made.error(f"there is no option {word}. {hint}")
    if not options.input.is_file():
        made.error(f"there is no input {options.input}")
    from phi_equivariant.engines.lammps.mpi import end_all, load_lammps, load_mpi

    try:
        mpi, lammps = load_mpi(), load_lammps()
    except InputError as error:
        print(f"phi-lammps: {error}", file=sys.stderr)
        return 2
    try:
        _share_cores(mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED).size)
        from phi_equivariant.engines.lammps.fix_external import LammpsPotential
        from phi_equivariant.engines.lammps.script import run_script

        potential = LammpsPotential(
            options.model,
            options.elements,
            options.total_charge,
            {name: value for name in ("total_spin", "external_field") if (value := getattr(options, name)) is not None},
            options.device,
            options.dtype,
            options.head,
            on_failure=end_all,
        )
        program = lammps(cmdargs=of_lammps, comm=mpi.COMM_WORLD)
        run_script(program, options.input, potential.attach)
        program.close()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            return 0
        if isinstance(error, InputError) and mpi.COMM_WORLD.size == 1:
            print(f"phi-lammps: {error}", file=sys.stderr)
            return 2
        end_all(error)
    return 0


def _share_cores(processes: int) -> None:
    """Give this process its share of the machine's cores, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
