"""Values of atoms put on a periodic mesh with B-splines, and read from it; differentiable to any order."""

import math
from collections.abc import Sequence
from typing import Any

import torch

_ATOMS = 256  # at a time: their stencils, 1000 points each at order 10, stay in a processor's cache
Orders = tuple[tuple[int, int, int], ...]  # of the splines' derivatives along the three cell vectors
VALUE: Orders = ((0, 0, 0),)
SLOPES: Orders = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


class Stencils:
    """Where atoms stand on a mesh: the splines and points there, which all maps and their derivatives share.

    Parameters
    ----------
    coordinates: (n_atoms, 3), u in units of mesh points, 0 ≤ u < size; the maps are differentiable in it
    size: three numbers of points
    order: p of the splines
    """

    def __init__(self, coordinates: torch.Tensor, size: Sequence[int], order: int) -> None:
        self.coordinates, self.size, self.order = coordinates, tuple(size), order
        fixed = coordinates.detach()
        highest = fixed.floor()
        self._rest, self._highest = (fixed - highest).T.contiguous(), highest.T.long()  # (3, n_atoms)
        self._splines: dict[int, torch.Tensor] = {}
        self._levels: list[torch.Tensor] = []
        self._points: torch.Tensor | None = None

    def splines(self, derivative: int) -> torch.Tensor:
        """M_p(t + j) or a derivative, j = 0…p − 1, along each axis: (3, n_atoms, p).

        M_1 is 1 on [0, 1), M_n(x) = [x M_{n−1}(x) + (n − x) M_{n−1}(x − 1)]/(n − 1), and the derivative of M_n(x) is
        M_{n−1}(x) − M_{n−1}(x − 1).
        """
        if not self._levels:
            self._levels = _levels(self._rest, self.order)
        if derivative not in self._splines:
            weights = self._levels[self.order - derivative - 1]
            for _ in range(derivative):
                weights = torch.nn.functional.pad(weights, (0, 1)) - torch.nn.functional.pad(weights, (1, 0))
            self._splines[derivative] = weights
        return self._splines[derivative]

    def derivatives(self, atoms: slice, orders: Orders) -> tuple[torch.Tensor, ...]:
        """The splines of some atoms and their derivatives, up to the highest of ``orders``, along each axis: three
        (n, 1 + highest, p)."""
        highest = max(d for order in orders for d in order)
        return torch.stack([self.splines(d)[:, atoms] for d in range(highest + 1)], dim=2).unbind(0)

    def chunks(self) -> list[slice]:
        """Slices of atoms."""
        n = self._rest.shape[1]
        return [slice(start, min(n, start + _ATOMS)) for start in range(0, n, _ATOMS)]

    def points(self, atoms: slice, channels: int) -> torch.Tensor:
        """Indices in the flat mesh of every channel's stencil: (n · channels · p³,)."""
        if self._rest.shape[1] > _ATOMS:
            return self._indices(atoms, channels)  # would fill the memory
        if self._points is None or len(self._points) != self._rest.shape[1] * channels * self.order**3:
            self._points = self._indices(atoms, channels)
        return self._points

    def _indices(self, atoms: slice, channels: int) -> torch.Tensor:
        device = self._rest.device
        behind = torch.arange(self.order, device=device)
        x, y, z = (
            (highest[atoms, None] - behind) % n for highest, n in zip(self._highest, self.size, strict=True)
        )  # (n, p)
        points = (x[:, :, None] * self.size[1] + y[:, None])[..., None] * self.size[2] + z[:, None, None]
        offset = math.prod(self.size) * torch.arange(channels, device=device)
        return (points[:, None] + offset[:, None, None, None]).flatten()


def _levels(rest: torch.Tensor, order: int) -> list[torch.Tensor]:
    """M_n(t + j), j = 0…n − 1, of n = 1…order: t (3, n_atoms) → n_th (3, n_atoms, n)."""
    pad = torch.nn.functional.pad
    j = torch.arange(order, dtype=rest.dtype, device=rest.device)
    x = rest[..., None] + j  # (3, n_atoms, p)
    levels = [torch.ones_like(rest)[..., None]]
    for n in range(2, order + 1):
        here, last = x[..., :n], levels[-1]
        levels.append((here * pad(last, (0, 1)) + (n - here) * pad(last, (1, 0))) / (n - 1))
    return levels


def spread(stencils: Stencils, values: torch.Tensor, orders: Orders = VALUE) -> torch.Tensor:
    """G_m = Σ_i Σ_o q_io ∂^o M_p(u_i − m); of order zero, Σ_m G_m = Σ_i q_i.

    M_p is the product of three cardinal B-splines, with p − 2 continuous derivatives. This map and ``read`` are linear
    in the values and each other's adjoint; their derivatives in u are the same maps with derivatives of the splines.

    Parameters
    ----------
    stencils: ``Stencils``
    values: (n_atoms, c, n_orders)
    orders: of derivatives of the splines

    Returns
    -------
    (c, *size)
    """
    mesh: torch.Tensor = _Spread.apply(stencils.coordinates, values, orders, stencils)
    return mesh


def read(stencils: Stencils, mesh: torch.Tensor, orders: Orders = VALUE) -> torch.Tensor:
    """f_io = Σ_m ∂^o M_p(u_i − m) G_m: mesh (c, *size) → (n_atoms, c, n_orders), see ``spread``."""
    values: torch.Tensor = _Read.apply(stencils.coordinates, mesh, orders, stencils)
    return values


class _Spread(torch.autograd.Function):
    """``spread``; its derivative in the values is ``read``."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: torch.Tensor, values: torch.Tensor, orders: Orders, stencils: Stencils
    ) -> torch.Tensor:
        ctx.save_for_backward(coordinates, values)
        ctx.orders, ctx.stencils = orders, stencils
        channels = values.shape[1]
        mesh = values.new_zeros(channels * math.prod(stencils.size))
        for atoms in stencils.chunks():
            x, y, z = stencils.derivatives(atoms, orders)  # (n, d, p) each
            n, d, p = x.shape
            weights = values.new_zeros(n, channels, d, d, d)
            for index, (i, j, k) in enumerate(orders):
                weights[:, :, i, j, k] += values[atoms, :, index]
            lines = weights.reshape(n, channels * d * d, d) @ z
            planes = y.mT[:, None] @ lines.reshape(n, channels * d, d, p)
            boxes = x.mT[:, None] @ planes.reshape(n, channels, d, p * p)
            mesh.index_add_(0, stencils.points(atoms, channels), boxes.flatten())
        return mesh.reshape(channels, *stencils.size)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        coordinates, values = ctx.saved_tensors
        at_coordinates, at_values = _slopes(ctx, coordinates, slope, values)
        return at_coordinates, at_values, None, None


class _Read(torch.autograd.Function):
    """``read``; its derivative in the mesh is ``spread``."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: torch.Tensor, mesh: torch.Tensor, orders: Orders, stencils: Stencils
    ) -> torch.Tensor:
        ctx.save_for_backward(coordinates, mesh)
        ctx.orders, ctx.stencils = orders, stencils
        channels, flat = len(mesh), mesh.flatten()
        out = mesh.new_empty(len(coordinates), channels, len(orders))
        for atoms in stencils.chunks():
            x, y, z = stencils.derivatives(atoms, orders)  # (n, d, p) each
            n, d, p = x.shape
            boxes = flat.index_select(0, stencils.points(atoms, channels)).reshape(n, channels * p * p, p)
            planes = y[:, None] @ (boxes @ z.mT).reshape(n, channels * p, p, d)
            found = (x[:, None] @ planes.reshape(n, channels, p, d * d)).reshape(n, channels, d, d, d)
            for index, (i, j, k) in enumerate(orders):
                out[atoms, :, index] = found[:, :, i, j, k]
        return out

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        coordinates, mesh = ctx.saved_tensors
        at_coordinates = (
            _slopes(ctx, coordinates, mesh, slope, with_values=False)[0] if ctx.needs_input_grad[0] else None
        )
        at_mesh = _Spread.apply(coordinates, slope, ctx.orders, ctx.stencils) if ctx.needs_input_grad[1] else None
        return at_coordinates, at_mesh, None, None


def _slopes(
    ctx: Any, coordinates: torch.Tensor, mesh: torch.Tensor, values: torch.Tensor, with_values: bool = True
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Derivatives of Σ_ico q_ico Σ_m ∂^o M_p(u_i − m) G_cm by u (n_atoms, 3) and by q (n_atoms, c, n_orders)."""
    n, orders = len(ctx.orders), ctx.orders if with_values else ()
    if ctx.needs_input_grad[0]:
        raised = tuple(
            (o[0] + (axis == 0), o[1] + (axis == 1), o[2] + (axis == 2)) for axis in range(3) for o in ctx.orders
        )
        orders = (*orders, *raised)
    found = _Read.apply(coordinates, mesh, orders, ctx.stencils)  # (n_atoms, c, n_orders)
    at_values = found[:, :, :n] if with_values else None
    if not ctx.needs_input_grad[0]:
        return None, at_values
    along = found[:, :, -3 * n :].unflatten(2, (3, n))
    return (along * values[:, :, None]).sum((1, 3)), at_values
