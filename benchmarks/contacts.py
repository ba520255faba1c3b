"""A hydrogen bond pressed together: what trained models say of contacts that are closer than any in their data.

    python benchmarks/contacts.py --models runs/bare runs/sqe

Two rigid molecules of acetamide, the oxygen of one on the line of an N–H bond of the other, from 2 Å down to 0.9 Å. The
models are of molecules with such groups, of Ac-Ala3-NHMe for one. GFN2-xTB (tblite, extra ``data``) gives the
reference. Simulations go where the energy is too low: if a model lets the hydrogen in, atoms fall onto each other
sooner or later.
"""

import argparse
from pathlib import Path

import numpy as np
from ase.build import molecule
from tblite.ase import TBLite

from phi_equivariant import PhiCalculator

DISTANCES = (2.0, 1.8, 1.6, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9)  # Å, O···H


def pressed(distance):
    """The pair with this O···H distance in Å."""
    donor, acceptor = molecule("CH3CONH2"), molecule("CH3CONH2")
    nitrogen = int(np.flatnonzero(donor.numbers == 7)[0])
    oxygen = int(np.flatnonzero(donor.numbers == 8)[0])
    carbon = int(min(np.flatnonzero(donor.numbers == 6), key=lambda i: donor.get_distance(i, oxygen)))
    hydrogens = [i for i in np.flatnonzero(donor.numbers == 1) if donor.get_distance(i, nitrogen) < 1.2]
    hydrogen = int(max(hydrogens, key=lambda i: donor.get_distance(i, oxygen)))  # free of its own carbonyl group
    along = donor.get_distance(nitrogen, hydrogen, vector=True)
    along /= np.linalg.norm(along)
    acceptor.positions -= acceptor.positions[oxygen]
    acceptor.rotate(acceptor.positions[carbon], along, center=(0, 0, 0))
    acceptor.positions += donor.positions[hydrogen] + distance * along
    return donor + acceptor


def main():
    """Print energies of the pair over that at the largest distance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, required=True)
    models = parser.parse_args().models
    pairs = [pressed(distance) for distance in DISTANCES]
    calculators = {"GFN2-xTB": TBLite(method="GFN2-xTB", verbosity=0)}
    calculators |= {str(path): PhiCalculator(path, dtype="float64") for path in models}
    print(f"| eV at an O···H distance of … Å | {' | '.join(map(str, DISTANCES[1:]))} |")
    print("|---" * len(DISTANCES) + "|")
    for name, calculator in calculators.items():
        energies = np.array([calculator.get_potential_energy(pair) for pair in pairs])
        print(f"| {name} | {' | '.join(f'{energy:+.2f}' for energy in energies[1:] - energies[0])} |", flush=True)


if __name__ == "__main__":
    main()
