"""Attaching Φ to a host by forward hooks: the host's code and weights are not touched."""

import torch
from e3nn import o3

from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.module import PhiModule
from phi_equivariant.potential import FeatureTap, PhiPotential


def attach_phi(host, config=None, taps=None):
    """Give a trained or fresh host a learned electrostatics.

    Parameters
    ----------
    host: model with mace's call signature that has ``r_max`` and ``atomic_numbers``
    config: ``PhiConfig``; its defaults where None
    taps: {"submodule.name": irreps} of the blocks whose output are node features, in the order they run. Not needed for
        mace-like hosts (``products[i].linear.irreps_out``) nor for hosts that declare ``phi_taps``.

    Returns
    -------
    PhiPotential, on the host's device and in its precision

    Raises
    ------
    InputError
        If the blocks to tap are not found, have no scalar channel, or already carry Φ.
    """
    config = PhiConfig() if config is None else config
    taps = find_taps(host) if taps is None else dict(taps)
    modules = dict(host.named_modules())
    for name in taps:
        if name not in modules:
            near = ", ".join(n for n in modules if n.count(".") <= 1)[:300]
            raise InputError(f"tap {name!r} is no submodule of {type(host).__name__}; it has {near}.")
        if any(isinstance(hook, FeatureTap) for hook in modules[name]._forward_hooks.values()):
            raise InputError(f"{type(host).__name__} already carries Φ; call detach() on that potential first.")
    reference = next(host.parameters())
    phi = PhiModule(
        [o3.Irreps(irreps) for irreps in taps.values()],
        [int(z) for z in host.atomic_numbers],
        float(host.r_max),
        config,
    )
    return PhiPotential(host, phi.to(device=reference.device, dtype=reference.dtype), tuple(taps)).train(host.training)


def find_taps(host):
    """{"submodule.name": irreps} of a host that declares them (``phi_taps``) or is built like mace."""
    declared = getattr(host, "phi_taps", None)
    if declared is not None:
        return dict(declared)
    products = getattr(host, "products", None)
    if isinstance(products, torch.nn.ModuleList) and all(
        hasattr(getattr(block, "linear", None), "irreps_out") for block in products
    ):
        return {f"products.{i}": block.linear.irreps_out for i, block in enumerate(products)}
    raise InputError(
        f"{type(host).__name__} is not built like mace (products[i].linear.irreps_out) and declares no phi_taps; give "
        "attach_phi(host, config, taps={'submodule.name': irreps, ...})."
    )
