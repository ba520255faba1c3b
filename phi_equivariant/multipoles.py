"""Gaussian dipoles beside Gaussian charges in free space: what they add to potentials and energy."""

import math

import torch

_SERIES_TERMS = {torch.float64: 18, torch.float32: 10}  # of F_m at x ≤ 1, to rounding


def dipole_terms(place, width, mask, charges, dipoles, coulomb_constant):
    """Potential of Gaussian dipoles, and the gradient of the potential of all charges and dipoles.

    With g(r) = k_e erf(r/√2γ_ij)/r, d = r_i − r_j, g₁ = g'/r and g₂ = g₁'/r,

        φ_i = −Σ_j g₁ d·μ_j,   (∇φ)_i = Σ_j [g₁ d q_j − g₁ μ_j − g₂ d (d·μ_j)],

    and the energy of charges and dipoles is ½ Σ_i [q_i (Pq + φ)_i + μ_i·(∇φ)_i]: that of the field of one charge
    density, so never negative. The sums include j = i, where only g₁(0) = −k_e √(2/π)/3γ³ is left, the energy of a
    dipole in its own field.

    Parameters
    ----------
    place: (n_structures, n_max, 3) in Å; width: (n_structures, n_max), σ in Å; mask: (n_structures, n_max)
    charges: (n_structures, n_max, c) in e; dipoles: (n_structures, n_max, c, 3) in e·Å; zero where there is no atom
    coulomb_constant: k_e in eV·Å/e²

    Returns
    -------
    potential: (n_structures, n_max, c) in V, of the dipoles alone
    gradient: (n_structures, n_max, c, 3) in V/Å
    """
    # In powers of r², without its root: nothing is singular where an atom meets itself.
    difference = place[:, :, None] - place[:, None, :]  # (n_structures, n_max, n_max, 3)
    spread = width.square()[:, :, None] + width.square()[:, None, :]
    spread = spread.where(mask[:, :, None] & mask[:, None, :], spread.new_ones(()))  # γ²
    x = difference.square().sum(-1) / (2 * spread)
    scale = coulomb_constant * math.sqrt(2 / math.pi) * spread.rsqrt()  # g = scale F₀(r²/2γ²)
    first = -scale / spread * boys(1, x)  # g₁
    second = scale / spread.square() * boys(2, x)  # g₂

    along = torch.einsum("gijx,gjcx->gijc", difference, dipoles)  # d·μ_j
    potential = -torch.einsum("gij,gijc->gic", first, along)
    radial = first[..., None] * charges[:, None] - second[..., None] * along  # (n_structures, n_max, n_max, c)
    gradient = torch.einsum("gijc,gijx->gicx", radial, difference) - torch.einsum("gij,gjcx->gicx", first, dipoles)
    return potential, gradient


def boys(order, x):
    """F_m(x) = ∫₀¹ t^{2m} e^{−xt²} dt for x ≥ 0; F_m' = −F_{m+1} makes it differentiable to any order.

    F₀(r²/2γ²) is √(π/2) γ erf(r/√2γ)/r.

    Source: S. F. Boys, Proc. R. Soc. A 200, 542 (1950).
    """
    return _Boys.apply(order, x)


class _Boys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, order, x):
        ctx.order = order
        ctx.save_for_backward(x)
        return torch.where(x < 1, _series(order, x.clamp(max=1)), _recursion(order, x.clamp(min=1)))

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return None, -gradient * _Boys.apply(ctx.order + 1, x)


def _series(order, x):
    """Σ_k (−x)^k / (k! (2m + 2k + 1))."""
    total = torch.zeros_like(x)
    for k in reversed(range(_SERIES_TERMS[x.dtype] + 1)):
        total = total * -x + 1 / (math.factorial(k) * (2 * order + 2 * k + 1))
    return total


def _recursion(order, x):
    """F_{m+1} = [(2m + 1) F_m − e^{−x}]/2x from F₀ = ½ √(π/x) erf √x; stable where x is not small."""
    root, decay = x.sqrt(), torch.exp(-x)
    value = 0.5 * math.sqrt(math.pi) * torch.erf(root) / root
    for m in range(order):
        value = ((2 * m + 1) * value - decay) / (2 * x)
    return value
