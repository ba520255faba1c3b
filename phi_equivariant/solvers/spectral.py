"""Responses f(λ) of an operator, applied to fields: all modes, a low-pass, or a window on the k smoothest modes.

Each response is an object with ``apply(matrix, fields, layout, second_order)``: matrix (n_structures, n_max, n_max),
fields (n_structures, n_max, c) → (n_structures, n_max, c), zero where there is no atom.
"""

import torch

from phi_equivariant.kept import keep, recall
from phi_equivariant.solvers.iterative import solve


class LowPass:
    """f(λ) = 1 / (1 + λ/λ_c) by a linear solve, without an eigenproblem, or without a matrix either.

    Parameters
    ----------
    cutoff: λ_c in e/V
    inverse: True where ``matrix`` is P = L⁻¹ rather than L
    """

    def __init__(self, cutoff, inverse):
        self.cutoff = cutoff
        self.inverse = inverse

    def apply(self, matrix, fields, layout, second_order):
        """f(L) applied to fields; differentiable to any order."""
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        if self.inverse:
            # (1 + P⁻¹/λ_c)⁻¹ = 1 − (P + 1/λ_c)⁻¹/λ_c
            return fields - torch.linalg.solve(matrix + identity / self.cutoff, fields) / self.cutoff
        return torch.linalg.solve(identity + matrix / self.cutoff, fields)

    def solve(self, product, fields, second_order, species=None):
        """f(L) applied to the fields of one structure by conjugate gradients; twice differentiable.

        Parameters
        ----------
        product: v → Lv, or Pv if ``inverse``; (n_atoms, c) → (n_atoms, c)
        fields: (n_atoms, c)
        second_order: whether second derivatives are wanted
        species: (n_atoms,); the iteration starts from the last solution if that was for the same species. Without
            them it starts from zero, and its result depends on nothing that came before.
        """
        if self.inverse:
            rhs, system = fields, lambda values: product(values) + values / self.cutoff
        else:
            rhs, system = fields, lambda values: values + product(values) / self.cutoff
        last = None
        if species is not None:
            kept = recall(self)
            if kept is None or not _same(kept[0], species):
                kept = species, {}
                keep(self, kept)
            last = kept[1]
        order = 0 if not torch.is_grad_enabled() else 2 if second_order else 1
        solution = solve(system, rhs, order, last)
        return fields - solution / self.cutoff if self.inverse else solution


def _same(one, other):
    return (one.shape, one.device) == (other.shape, other.device) and torch.equal(one, other)


class ModeWindow:
    """The k lowest modes of a symmetric matrix through a Fermi window, f_i = 1/(1 + e^{(λ_i−μ)/τ}) with Σ_i f_i = k.

    The matrix function is expanded about the current matrix: with X = Uᵀ M U − Λ, zero in value but not in its
    derivatives (U, Λ and the divided differences are constants),

        f(M) = U [f(Λ) + Γ∘X + ((Γ∘X)X − X(Γ∘X))/(λ_i − λ_j)] Uᵀ,   Γ_ij = (f_i − f_j)/(λ_i − λ_j),

    so the first and second derivatives are exact, for degenerate spectra too; a third derivative is not. μ follows from
    Σf = k by implicit differentiation to the same order. A structure of at most k atoms keeps all its modes.

    Parameters
    ----------
    num_modes: k
    width: τ, in the units of the matrix's eigenvalues

    Source: Daleckii–Krein theorem; Higham, Functions of Matrices (2008), chapter 3.
    """

    def __init__(self, num_modes, width):
        self.num_modes = num_modes
        self.width = width

    def apply(self, matrix, fields, layout, second_order):
        """f(M) applied to fields; ``second_order`` off saves the term that only second derivatives see."""
        windowed = layout.counts > self.num_modes  # (n_structures,)
        if not bool(windowed.any()):
            return fields
        matrix, vectors, u = self._decompose(matrix, layout)
        kept = layout.mask & windowed[:, None]
        pairs = kept[:, :, None] & kept[:, None, :]
        gamma = _divided_differences(u).where(pairs, u.new_zeros(()))
        occupation = torch.where(windowed[:, None], 0.5 * (1 - torch.tanh(u)), torch.ones_like(u))

        # X in units of 2τ. Its value is rounding error, which the quotient of the second order would magnify.
        shift = vectors.mT @ (matrix / (2 * self.width)) @ vectors
        shift = shift - shift.detach()
        shift = shift - torch.diag_embed(self._level_change(shift, u, gamma, second_order)[:, None].expand_as(u))
        first = gamma * shift
        core = torch.diag_embed(occupation) + first
        if second_order:
            core = core + _second_order(first, shift, gamma, u, pairs)
        return vectors @ (core @ (vectors.mT @ fields))

    def _decompose(self, matrix, layout):
        """The matrix with padding moved above every mode, its eigenvectors, and u = (λ − μ)/2τ."""
        with torch.no_grad():
            bound = matrix.abs().sum(-1).amax(-1)  # (n_structures,) Gershgorin
            padding = (~layout.mask) * (2 * bound + 20 * self.width)[:, None]
        matrix = matrix + torch.diag_embed(padding)
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(matrix)
            level = self._level(values, layout).to(values.dtype)
            return matrix, vectors, (values - level[:, None]) / (2 * self.width)

    def _level(self, values, layout):
        """μ with Σ_i f_i = k by bisection: values (n_structures, n_max) → (n_structures,)."""
        values = values.double()
        low = values[:, 0] - 60 * self.width
        high = values.masked_fill(~layout.mask, -torch.inf).amax(-1) + 60 * self.width
        values = values.masked_fill(~layout.mask, torch.inf)
        for _ in range(70):
            middle = (low + high) / 2
            too_many = torch.sigmoid((middle[:, None] - values) / self.width).sum(-1) > self.num_modes
            low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
        return (low + high) / 2

    def _level_change(self, shift, u, gamma, second_order):
        """Change of μ/2τ that keeps tr f(M) = k: (n_structures,), zero in value."""
        slope = torch.diagonal(gamma, dim1=-2, dim2=-1)  # f'(u), zero for padding
        total = slope.sum(-1)
        total = torch.where(total == 0, torch.ones_like(total), total)  # structures that keep all modes
        change = (slope * torch.diagonal(shift, dim1=-2, dim2=-1)).sum(-1) / total
        if second_order:
            rest = shift - torch.diag_embed(change[:, None].expand_as(u))
            tanh = torch.tanh(u)
            # Divided differences of f' = −½(1 − tanh²) follow from those of f.
            curvature = -gamma * (tanh[:, :, None] + tanh[:, None, :])
            change = change + 0.5 * (curvature * rest.square()).sum((-2, -1)) / total
        return change


def _divided_differences(u):
    """Γ_ij = (f(u_i) − f(u_j))/(u_i − u_j) of f = ½(1 − tanh), exact for equal arguments: (..., n) → (..., n, n)."""
    difference = u[..., :, None] - u[..., None, :]
    near = difference.abs() < 0.5
    tanh, sech = torch.tanh(u), 1 / torch.cosh(u.clamp(-40, 40))
    # tanh a − tanh b = sinh(a − b) sech a sech b: no cancellation where a and b are close.
    step = torch.where(near & (difference != 0), difference, torch.ones_like(difference))
    sinhc = torch.where(difference == 0, torch.ones_like(difference), torch.sinh(step) / step)
    close = sinhc * sech[..., :, None] * sech[..., None, :]
    apart = (tanh[..., :, None] - tanh[..., None, :]) / difference.where(~near, torch.ones_like(difference))
    return -0.5 * torch.where(near, close, apart)


def _second_order(first, shift, gamma, u, pairs):
    """Σ_k f[u_i, u_k, u_j] X_ik X_kj, with its limit for (nearly) equal u_i and u_j: (n_structures, n_max, n_max)."""
    difference = u[:, :, None] - u[:, None, :]
    # Either form errs by about eps^(2/3) at this distance: the quotient by rounding, the limit by its next order.
    near = difference.abs() < torch.finfo(u.dtype).eps ** (1 / 3)
    divisor = difference.where(~near, torch.ones_like(difference))

    third = (2 * u[:, :, None] + u[:, None, :]) / 3
    tanh = torch.tanh(third)
    half_curvature = 0.5 * (1 - tanh.square()) * tanh  # ½ f''
    slope = torch.diagonal(gamma, dim1=-2, dim2=-1)
    repeated = torch.where(near, half_curvature, (slope[:, :, None] - gamma) / divisor)  # f[u_i, u_i, u_k]
    limit = (repeated.where(pairs, repeated.new_zeros(())) * shift) @ shift

    product = first @ shift
    # Padding and structures that keep all modes take no part, whatever their u is.
    term = torch.where(near, 0.5 * (limit + limit.mT), (product - product.mT) / divisor)
    return term.where(pairs, term.new_zeros(()))
