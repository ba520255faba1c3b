"""Values of atoms spread over a periodic mesh with B-splines, and read from it; differentiable to any order."""

import math

import torch

_ATOMS = 256  # at a time: their stencils, 1000 points each at order 10, stay in a processor's cache
# The orders of the splines' derivatives along the three cell vectors.
VALUE = (0, 0, 0)
SLOPES = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def spread(place, values, size, order):
    """G_m = Σ_i q_i M_p(u_i − m), a mesh on which Σ_m G_m = Σ_i q_i.

    M_p is the product of three cardinal B-splines, with p − 2 continuous derivatives. This map and ``read`` are linear
    in the values and each other's adjoint; their derivatives in u are the same maps with derivatives of the splines.

    Parameters
    ----------
    place: (n_atoms, 3), u in units of mesh points, 0 ≤ u < size
    values: (n_atoms, c); size: three numbers of points; order: p

    Returns
    -------
    (c, *size)
    """
    return _Spread.apply(place, values[:, :, None], (VALUE,), tuple(size), order)


def read(place, mesh, order):
    """f_i = Σ_m M_p(u_i − m) G_m: place (n_atoms, 3), mesh (c, *size) → (n_atoms, c), see ``spread``."""
    return _Read.apply(place, mesh, (VALUE,), order)[:, :, 0]


def spread_slopes(place, vectors, size, order):
    """G_m = Σ_i p_i·∇_u M_p(u_i − m): vectors p (n_atoms, c, 3), others as for ``spread``."""
    return _Spread.apply(place, vectors, SLOPES, tuple(size), order)


def read_slopes(place, mesh, order):
    """Σ_m ∇_u M_p(u_i − m) G_m: place (n_atoms, 3), mesh (c, *size) → (n_atoms, c, 3)."""
    return _Read.apply(place, mesh, SLOPES, order)


class _Spread(torch.autograd.Function):
    """(n_atoms, 3), (n_atoms, c, n_orders) → (c, *size): Σ_i Σ_o q_io ∂^o M_p(u_i − m)."""

    @staticmethod
    def forward(ctx, place, values, orders, size, order):
        ctx.save_for_backward(place, values)
        ctx.orders, ctx.order = orders, order
        channels, points = values.shape[1], math.prod(size)
        mesh = values.new_zeros(channels * points)
        for atoms, first, splines in _chunks(place, orders, order):
            total = 0
            for index, (i, j, k) in enumerate(orders):
                along = values[atoms, :, index, None] * splines[0][i][:, None]  # (n, c, p)
                plane = splines[1][j][:, :, None] * splines[2][k][:, None, :]  # (n, p, p)
                total = total + along[..., None, None] * plane[:, None, None]  # (n, c, p, p, p)
            mesh.index_add_(0, _points(first, size, order, channels), total.flatten())
        return mesh.reshape(channels, *size)

    @staticmethod
    def backward(ctx, slope):
        place, values = ctx.saved_tensors
        at_place, at_values = _slopes(ctx, place, slope, values)
        return at_place, at_values, None, None, None


class _Read(torch.autograd.Function):
    """(n_atoms, 3), (c, *size) → (n_atoms, c, n_orders): Σ_m ∂^o M_p(u_i − m) G_m."""

    @staticmethod
    def forward(ctx, place, mesh, orders, order):
        ctx.save_for_backward(place, mesh)
        ctx.orders, ctx.order = orders, order
        channels, size = len(mesh), mesh.shape[1:]
        flat, out = mesh.flatten(), mesh.new_empty(len(place), channels, len(orders))
        for atoms, first, splines in _chunks(place, orders, order):
            stencil = flat.index_select(0, _points(first, size, order, channels))
            stencil = stencil.reshape(len(first), channels * order * order, order)
            summed = {k: (stencil @ splines[2][k][:, :, None]).reshape(-1, channels, order, order) for k in splines[2]}
            for index, (i, j, k) in enumerate(orders):
                line = (summed[k] * splines[1][j][:, None, None]).sum(-1)  # (n, c, p)
                out[atoms, :, index] = (line * splines[0][i][:, None]).sum(-1)
        return out

    @staticmethod
    def backward(ctx, slope):
        place, mesh = ctx.saved_tensors
        at_place, _ = _slopes(ctx, place, mesh, slope, with_values=False)
        at_mesh = _Spread.apply(place, slope, ctx.orders, tuple(mesh.shape[1:]), ctx.order)
        return at_place, at_mesh if ctx.needs_input_grad[1] else None, None, None


def _slopes(ctx, place, mesh, values, with_values=True):
    """Derivatives of Σ_ico q_ico Σ_m ∂^o M_p(u_i − m) G_cm by u (n_atoms, 3) and by q (n_atoms, c, n_orders)."""
    raised = [tuple(o[a] + (a == axis) for a in range(3)) for axis in range(3) for o in ctx.orders]
    orders = (*ctx.orders, *raised) if ctx.needs_input_grad[0] else ctx.orders
    found = _Read.apply(place, mesh, orders, ctx.order)  # (n_atoms, c, n_orders or four times as many)
    n = len(ctx.orders)
    if not ctx.needs_input_grad[0]:
        return None, found
    along = found[:, :, n:].unflatten(2, (3, n))
    return (along * values[:, :, None]).sum((1, 3)), found[:, :, :n] if with_values else None


def _chunks(place, orders, order):
    """Slices of atoms, their highest mesh points (n, 3), and for each axis {derivative: splines (n, p)}."""
    for start in range(0, len(place), _ATOMS):
        atoms = slice(start, start + _ATOMS)
        first = place[atoms].floor()
        rest = (place[atoms] - first).unbind(1)
        wanted = [sorted({o[axis] for o in orders}) for axis in range(3)]
        yield atoms, first.long(), [{d: splines(t, order, d) for d in ds} for t, ds in zip(rest, wanted, strict=True)]


def _points(first, size, order, channels):
    """Indices in the flat mesh of every channel's stencil: (n · c · p³,)."""
    behind = torch.arange(order, device=first.device)
    x, y, z = ((first[:, axis, None] - behind) % size[axis] for axis in range(3))  # (n, p)
    points = (x[:, :, None] * size[1] + y[:, None])[..., None] * size[2] + z[:, None, None]  # (n, p, p, p)
    offset = math.prod(size) * torch.arange(channels, device=first.device)
    return (points[:, None] + offset[:, None, None, None]).flatten()


def splines(t, order, derivative=0):
    """M_p(t + j) or a derivative, j = 0…p − 1, for t in [0, 1): (n,) → (n, p).

    M_1 is 1 on [0, 1), M_n(x) = [x M_{n−1}(x) + (n − x) M_{n−1}(x − 1)]/(n − 1), and the derivative of M_n(x) is
    M_{n−1}(x) − M_{n−1}(x − 1).
    """
    pad = torch.nn.functional.pad
    weights = torch.ones_like(t)[:, None]
    for n in range(2, order - derivative + 1):
        x = t[:, None] + torch.arange(n, dtype=t.dtype, device=t.device)
        weights = (x * pad(weights, (0, 1)) + (n - x) * pad(weights, (1, 0))) / (n - 1)
    for _ in range(derivative):
        weights = pad(weights, (0, 1)) - pad(weights, (1, 0))
    return weights
