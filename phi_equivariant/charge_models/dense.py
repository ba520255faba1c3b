"""The energy's second derivatives as matrices, for structures that are small enough."""

from collections.abc import Callable

import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.charge_models.energy import ChargeEnergy
from phi_equivariant.errors import ConvergenceError
from phi_equivariant.solvers.kept_inverse import KeptInverse, Last

# Atoms up to which factorising is faster than conjugate gradients where dipoles respond: without their matrix at hand,
# and with it where one factor is all that is needed.
MOMENTS_TO, KNOWN_MOMENTS_TO = 64, 250


def is_small(energy: ChargeEnergy, dense: bool | None, charges_to: int = 0, moments_to: int = MOMENTS_TO) -> bool:
    """Whether to factorise: as ``dense`` says, where that is None up to ``charges_to`` atoms.

    Where dipoles respond, up to ``moments_to`` atoms if the operator has their matrix, else up to ``MOMENTS_TO``.
    """
    if not energy.operator.dense:
        return False
    if dense is not None:
        return dense
    n = energy.layout.n_max
    if energy.width == 1:
        return n <= charges_to
    return n <= MOMENTS_TO or (n <= moments_to and energy.operator.joint_matrix() is not None)


@torch.no_grad()
def hessian_matrix(energy: ChargeEnergy) -> torch.Tensor:
    """∂²U/∂z² of every structure (n_structures, n_max·width, n_max·width), an atom's moments side by side; the unit
    matrix where there is no atom."""
    layout, width = energy.layout, energy.width
    size = layout.n_max * width
    if width == 1:
        matrix = energy.operator.matrix().detach()
        if energy.hardness is not None:
            matrix = matrix + torch.diag_embed(layout.pad(energy.hardness.detach()))
    else:
        known = energy.operator.joint_matrix()
        matrix = _joint(energy).reshape(layout.n_structures, size, size) if known is None else known
        if energy.hardness is not None and known is not None:
            own = torch.nn.functional.pad(energy.hardness.detach()[:, None], (0, 3))
            matrix = matrix + torch.diag_embed(layout.pad(own).flatten(1))
    return matrix + torch.diag_embed((~layout.mask).to(matrix.dtype).repeat_interleave(width, dim=1))


def _joint(energy: ChargeEnergy) -> torch.Tensor:
    """∂²U/∂z² column by column: (n_structures, n_max, width, n_max·width)."""
    layout, width = energy.layout, energy.width
    one_hot = torch.arange(layout.n_max, device=layout.slot.device) == layout.slot[:, None]  # (n_atoms, n_max)
    number = energy.operator.diagonal().dtype
    units = torch.einsum("ij,ab->iajb", one_hot.to(number), torch.eye(width, dtype=number, device=one_hot.device))
    units = units.reshape(len(one_hot), width, layout.n_max * width)
    charges, dipoles = units[:, 0], units[:, 1:].transpose(1, 2)
    potential, gradient = energy.operator.joint(charges, dipoles)
    if energy.hardness is not None:
        potential = potential + energy.hardness[:, None] * charges
    return layout.pad(torch.cat([potential[:, None], gradient.transpose(1, 2)], dim=1))


Solve = Callable[[torch.Tensor], torch.Tensor]


def kept_in_single(
    factorise: Callable[[], Solve], product: Solve, otherwise: Solve, rows: int, last: Last | None
) -> KeptInverse:
    """What is factorised in single precision, to precondition with, kept as ``KeptInverse``, whose arguments these are;
    ``otherwise`` where rounding leaves it not positive definite."""

    def to_single(of: Solve) -> Solve:
        return lambda residual: of(residual.to(torch.float32)).to(residual.dtype)

    def make() -> Solve | None:
        try:
            return to_single(factorise())
        except ConvergenceError:
            return None

    return KeptInverse(make, to_single(product), otherwise, rows, last)


def flat(values: torch.Tensor, layout: PaddedLayout) -> torch.Tensor:
    """(n_atoms, width) → (n_structures, n_max·width, 1)."""
    return layout.pad(values).flatten(1)[..., None]


def unflat(values: torch.Tensor, layout: PaddedLayout) -> torch.Tensor:
    """(n_structures, n_max·width, 1) → (n_atoms, width)."""
    return layout.unpad(values.reshape(layout.n_structures, layout.n_max, -1))


def cholesky(matrix: torch.Tensor, what: str, layout: PaddedLayout) -> torch.Tensor:
    """Lower factors of symmetric positive definite matrices (n_structures, n, n).

    Raises
    ------
    ConvergenceError
        Where one is not positive definite to the precision, or not finite.
    """
    factor: torch.Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    failed = (info > 0) | ~torch.isfinite(matrix.sum((1, 2)))
    if bool(failed.any()):
        index = int(failed.nonzero()[0, 0])
        precision = str(matrix.dtype).removeprefix("torch.")
        finite = bool(torch.isfinite(matrix[index]).all())
        reason = f"not positive definite in {precision}" if finite else "not finite (NaN or infinity)"
        advice = ", or compute in float64" if matrix.dtype == torch.float32 else ""
        raise ConvergenceError(
            f"the {what} of a structure of {int(layout.counts[index])} atoms cannot be solved for: the matrix of its "
            f"energy is {reason}. Look for atoms on top of each other and for weights that have grown without "
            f"bound{advice}."
        )
    return factor
