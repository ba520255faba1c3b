"""What a large box costs the small cells of its batch: one of 60 Å among 15 of 7 Å, against the two apart.

    OMP_NUM_THREADS=1 python benchmarks/company.py

A step of training each: energies, forces, and the gradient of a loss on both. The two ways take turns, so that other
work on the machine meets both; the figure is the median of the turns' ratios. A test counts operations instead
(``tests/phi_equivariant/operators/test_splitting.py``), which does not depend on the machine.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import torch
from ase import Atoms
from ase.build import bulk, molecule

from phi_equivariant import PhiPotential
from phi_equivariant.inputs.graphs import GraphBatch, collate
from training.data.labelled_graphs import GraphMaker
from zoo import create_model

R_MAX, ELEMENTS = 4.5, [6, 7]


def batch_of(structures: Sequence[Atoms]) -> GraphBatch:
    """Structures as the trainer batches them."""
    return collate(list(map(GraphMaker(ELEMENTS, R_MAX), structures)))


def step(model: PhiPotential, batches: Sequence[GraphBatch]) -> float:
    """Processor time of a training step over batches, in s."""
    begin = time.process_time()
    for batch in batches:
        out = model(GraphBatch(batch), training=True)
        (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    return time.process_time() - begin


def main() -> None:
    """Print the ratio and the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    options = {"hidden_irreps": "16x0e", "num_interactions": 2, "r_max": R_MAX}
    model = create_model("phi-mace-small", elements=ELEMENTS, E0s=dict.fromkeys(ELEMENTS, 0.0), **options)
    small = [bulk("NC", "rocksalt", a=7.0, cubic=True) for _ in range(15)]
    large = molecule("C60")
    large.set_cell([60.0] * 3)
    large.pbc = True
    together, apart = [batch_of([large, *small])], [batch_of([large]), batch_of(small)]
    for _ in range(2):  # TorchScript optimises during its first calls
        step(model, together), step(model, apart)
    times = [(step(model, together), step(model, apart)) for _ in range(turns)]
    ratios = [one / two for one, two in times]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    print(f"together {seconds[0]:.3f} s, apart {seconds[1]:.3f} s of processor time, {turns} turns")
    print(
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
