"""A periodic mesh that processes have a share of each, and its Fourier transform."""

from collections.abc import Sequence

import torch

from phi_equivariant.division import WHOLE, Share, Way


class DividedMesh:
    """Who has what of a mesh of n_a × n_b × n_c points.

    A process has some planes along the first axis, and of the waves some along the second. It puts on the mesh the
    atoms that stand in its planes. Their stencils reach order − 1 planes further back, so it also has a window: its
    planes and those. One process alone has all of each.

    Parameters
    ----------
    share: of the mesh
    size: three numbers of points
    order: of the splines
    device: of the tensors
    """

    def __init__(self, share: Share, size: Sequence[int], order: int, device: torch.device) -> None:
        self.share, (n_a, n_b, n_c) = share, size
        self.size = n_a, n_b, n_c
        self.planes, self.columns = share.rows(n_a), share.rows(n_b)
        self.window, self.first, self.half = self.size, 0, n_c // 2 + 1
        if share is WHOLE:
            return
        all_planes, all_columns = share.all_rows(n_a), share.all_rows(n_b)
        reached = [torch.arange(planes.start - order + 1, planes.stop) % n_a for planes in all_planes]
        self.first = self.planes.start - order + 1
        self.window = len(reached[share.rank]), n_b, n_c

        def within(values: torch.Tensor, rows: slice) -> torch.Tensor:
            return (values >= rows.start) & (values < rows.stop)

        def way(
            sent: list[torch.Tensor], received: list[torch.Tensor], dims: tuple[int, int], lengths: tuple[int, int]
        ) -> Way:
            return Way([i.to(device) for i in sent], [i.to(device) for i in received], dims, lengths)

        mine, n_planes = reached[share.rank], self.planes.stop - self.planes.start
        self._to_planes = way(
            [within(mine, planes).nonzero()[:, 0] for planes in all_planes],
            [theirs[within(theirs, self.planes)] - self.planes.start for theirs in reached],
            (1, 1), (len(mine), n_planes),
        )  # fmt: skip
        self._to_columns = way(
            [torch.arange(columns.start, columns.stop) for columns in all_columns],
            [torch.arange(planes.start, planes.stop) for planes in all_planes],
            (2, 1), (n_b, n_a),
        )  # fmt: skip

    def atoms(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Those of this process: u (n_atoms, 3) in mesh points, 0 ≤ u < size → (n,)."""
        plane = coordinates[:, 0].floor()
        return ((plane >= self.planes.start) & (plane < self.planes.stop)).nonzero()[:, 0]

    def waves(self, window: torch.Tensor) -> torch.Tensor:
        """Fourier transform of the sum of all windows: (c, *window) → this process's waves (c, n_a, n, n_c/2 + 1)."""
        if self.share is WHOLE:
            return torch.fft.rfftn(window, dim=(1, 2, 3))
        planes = self.share.exchange(window, self._to_planes)
        lines = _transform(torch.fft.rfft(planes, dim=3) if planes.numel() else planes[..., : self.half] * 1j, 2)
        return _transform(self.share.exchange(lines, self._to_columns), 1)

    def values(self, waves: torch.Tensor) -> torch.Tensor:
        """Back, without dividing by the number of points, in this process's window."""
        if self.share is WHOLE:
            return torch.fft.irfftn(waves, s=self.size, dim=(1, 2, 3), norm="forward")
        lines = self.share.exchange(_transform(waves, 1, back=True), self._to_columns.back())
        lines, n = _transform(lines, 2, back=True), self.size[2]
        if lines.numel():
            planes = torch.fft.irfft(lines, n=n, dim=3, norm="forward")
        else:
            planes = torch.nn.functional.pad(lines.real, (0, n - self.half))
        return self.share.exchange(planes, self._to_planes.back())


def _transform(values: torch.Tensor, dim: int, back: bool = False) -> torch.Tensor:
    """Fourier transform along one axis. A process that has nothing goes on: libraries refuse empty transforms, and its
    derivatives must pass through the same exchanges as the others'."""
    if not values.numel():
        return values
    return torch.fft.ifft(values, dim=dim, norm="forward") if back else torch.fft.fft(values, dim=dim)
