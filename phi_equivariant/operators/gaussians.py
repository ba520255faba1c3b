"""Gaussian charges and dipoles: how two of them interact.

Of two with γ² = σ_i² + σ_j² at d = r_i − r_j the interaction is g(r) = k_e erf(r/√2γ)/r, and with g₁ = g'/r, g₂ = g₁'/r

    φ_i = Σ_j [g q_j − g₁ d·μ_j],   (∇φ)_i = Σ_j [g₁ d q_j − g₁ μ_j − g₂ d (d·μ_j)].

½ Σ_i [q_i φ_i + μ_i·(∇φ)_i] is the energy of the field of one charge density, so never negative. The sums include
j = i, where g(0) = k_e √(2/π)/γ and g₁(0) = −g(0)/3γ² are left: charge and dipole in their own fields.
"""

import math
from typing import Any

import torch

COULOMB_CONSTANT = 14.399645  # k_e in eV·Å/e², 1/(4πε₀)

_SERIES_TERMS = {torch.float64: 18, torch.float32: 10}  # of F_m at x ≤ 1, to rounding


def charge_kernel(distance: torch.Tensor, gamma_squared: torch.Tensor | float) -> torch.Tensor:
    """g in V/e at distances that are not zero: distance in Å, γ² in Å²."""
    if isinstance(gamma_squared, float):
        argument = distance / math.sqrt(2 * gamma_squared)
    else:
        argument = distance * (2 * gamma_squared).rsqrt()
    return COULOMB_CONSTANT * torch.erf(argument) / distance


def own_kernel(gamma_squared: torch.Tensor) -> torch.Tensor:
    """g(0) = k_e √(2/π)/γ in V/e."""
    return COULOMB_CONSTANT * math.sqrt(2 / math.pi) * gamma_squared.rsqrt()


def own_gradient_kernel(gamma_squared: torch.Tensor) -> torch.Tensor:
    """−g₁(0) = k_e √(2/π)/3γ³ in V/Å²/e: ∇φ of a dipole where it is, per dipole."""
    return own_kernel(gamma_squared) / (3 * gamma_squared)


def kernels(squared: torch.Tensor, gamma_squared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """g in V/e, g₁ in V/Å²/e and g₂ in V/Å⁴/e at distances r², zero too, for γ²."""
    # In powers of r², without its root: nothing is singular where an atom meets itself.
    zeroth, first, second = boys(2, squared / (2 * gamma_squared)).unbind(0)
    scale = own_kernel(gamma_squared)
    return scale * zeroth, -scale / gamma_squared * first, scale / gamma_squared.square() * second


def boys(order: int, x: torch.Tensor) -> torch.Tensor:
    """F_m(x) = ∫₀¹ t^{2m} e^{−xt²} dt of m = 0…order for x ≥ 0: (order + 1, *x.shape).

    F_m' = −F_{m+1} makes them differentiable to any order. F₀(r²/2γ²) is √(π/2) γ erf(r/√2γ)/r.

    Source: S. F. Boys, Proc. R. Soc. A 200, 542 (1950).
    """
    found: torch.Tensor = _Boys.apply(order, x)
    return found


class _Boys(torch.autograd.Function):
    @staticmethod
    def forward(order: int, x: torch.Tensor) -> torch.Tensor:
        values, small = _upwards(order, x.clamp(min=1)), x < 1
        values[:, small] = _downwards(order, x[small])
        return values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[int, torch.Tensor], output: torch.Tensor) -> None:
        ctx.order, x = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[None, torch.Tensor]:
        (x,) = ctx.saved_tensors
        return None, -(slope * boys(ctx.order + 1, x)[1:]).sum(0)


def _downwards(order: int, x: torch.Tensor) -> torch.Tensor:
    """The highest by Σ_k (−x)^k / (k! (2m + 2k + 1)), the others by F_m = (2x F_{m+1} + e^{−x})/(2m + 1)."""
    highest, decay = torch.zeros_like(x), torch.exp(-x)
    for k in reversed(range(_SERIES_TERMS[x.dtype] + 1)):
        highest = highest * -x + 1 / (math.factorial(k) * (2 * order + 2 * k + 1))
    values = [highest]
    for m in reversed(range(order)):
        values.append((2 * x * values[-1] + decay) / (2 * m + 1))
    return torch.stack(values[::-1])


def _upwards(order: int, x: torch.Tensor) -> torch.Tensor:
    """F_{m+1} = [(2m + 1) F_m − e^{−x}]/2x from F₀ = ½ √(π/x) erf √x; stable where x is not small."""
    root, decay = x.sqrt(), torch.exp(-x)
    values = [0.5 * math.sqrt(math.pi) * torch.erf(root) / root]
    for m in range(order):
        values.append(((2 * m + 1) * values[-1] - decay) / (2 * x))
    return torch.stack(values)


def add_pairs(first: torch.Tensor, second: torch.Tensor, kernel: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """Σ_j g q_j over pairs, each counted for both atoms: first, second, kernel (n_pairs,), charges (n_atoms, c) in e →
    (n_atoms, c) in V."""
    kernel = kernel[:, None]
    potential = torch.zeros_like(charges).index_add(0, first, kernel * charges.index_select(0, second))
    return potential.index_add(0, second, kernel * charges.index_select(0, first))


def add_joint_pairs(
    first: torch.Tensor,
    second: torch.Tensor,
    vectors: torch.Tensor,
    three: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    charges: torch.Tensor,
    dipoles: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """φ (n_atoms, c) in V and ∇φ (n_atoms, c, 3) in V/Å of charges and dipoles over pairs, for both atoms.

    Parameters
    ----------
    first, second: (n_pairs,); vectors: (n_pairs, 3) from the first to the second, in Å
    three: g, g₁ and g₂ (n_pairs,)
    charges: (n_atoms, c) in e; dipoles: (n_atoms, c, 3) in e·Å
    """
    zeroth, slope, curvature = (kernel[:, None] for kernel in three)  # (n_pairs, 1)
    potential, gradient = torch.zeros_like(charges), torch.zeros_like(dipoles)
    for sign, here, there in ((-1, first, second), (1, second, first)):
        d, q, mu = sign * vectors[:, None, :], charges.index_select(0, there), dipoles.index_select(0, there)
        along = (d * mu).sum(-1)  # (n_pairs, c)
        potential = potential.index_add(0, here, zeroth * q - slope * along)
        radial = slope * q - curvature * along
        gradient = gradient.index_add(0, here, radial[..., None] * d - slope[..., None] * mu)
    return potential, gradient
