"""Attaching Φ to a host by forward hooks: the host's code and weights are not touched."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.host_protocol import MaceLike
from phi_equivariant.phi_module import PhiModule
from phi_equivariant.potential import PhiPotential
from phi_equivariant.quiet import importing
from phi_equivariant.taps import RecordedOutput, Tap, irreps_of, read_taps, submodules

with importing():
    from e3nn import o3


def attach_phi(
    host: torch.nn.Module,
    config: PhiConfig | Mapping[str, Any] | None = None,
    taps: Mapping[str, Any] | None = None,
) -> PhiPotential:
    """Add a learned electrostatics to a host, trained or fresh.

    Parameters
    ----------
    host: model with mace's call signature that has ``r_max`` and ``atomic_numbers``
    config: ``PhiConfig`` or a dictionary of its fields; its defaults where None
    taps: {"submodule.name": irreps, a width, a ``Tap`` or a list of these} of the blocks whose outputs are node
        features, in the order they run. Not needed for mace-like hosts (``products[i].linear.irreps_out``) nor for
        hosts that declare ``phi_taps``.

    Returns
    -------
    PhiPotential, on the host's device and in its precision

    Raises
    ------
    InputError
        If the host is not such a model, or the blocks to tap are not found, do not have a scalar channel, or carry Φ
        already; with ``multipoles=1``, if they run on cuequivariance's kernels.
    """
    if isinstance(host, PhiPotential):
        raise InputError("the model already carries Φ; call detach() on it first.")
    if not isinstance(host, torch.nn.Module):
        raise InputError(
            f"the host is {host!r}; give a model. A .model file is read by zoo.mace_host.read_model(path, "
            "trust_pickle=True). A pickle can run code, so do this only if you trust its origin."
        )
    if not isinstance(config, PhiConfig):
        config = PhiConfig() if config is None else PhiConfig.from_dict(config)
    missing = [name for name in ("r_max", "atomic_numbers") if not hasattr(host, name)]
    if missing:
        raise InputError(
            f"{type(host).__name__} does not have {' and '.join(missing)}: it is not called as a mace model is. "
            "Make a host of it by zoo.GenericModel."
        )
    found = find_taps(host) if taps is None else read_taps(taps)
    modules = dict(host.named_modules())
    for name in submodules(found):
        if name not in modules:
            near = ", ".join(n for n in modules if n.count(".") <= 1)[:300]
            raise InputError(f"tap {name!r} is not a submodule of {type(host).__name__}; it has {near}.")
        if any(isinstance(hook, RecordedOutput) for hook in modules[name]._forward_hooks.values()):
            raise InputError(
                f"{type(host).__name__} already carries Φ; call detach() on that potential, and copy hosts before they "
                "are given one."
            )
        if config.multipoles and name in found:
            _check_layout(name, modules[name])
    reference = next(host.parameters())
    phi = PhiModule(
        [irreps_of(parts) for parts in found.values()],
        [int(z) for z in cast(MaceLike, host).atomic_numbers],
        float(cast(MaceLike, host).r_max),
        config,
    )
    return PhiPotential(host, phi.to(device=reference.device, dtype=reference.dtype), found).train(host.training)


def find_taps(host: torch.nn.Module) -> dict[str, tuple[Tap, ...]]:
    """{"submodule.name": (Tap, …)} of a host that declares them (``phi_taps``) or is built like mace."""
    declared = getattr(host, "phi_taps", None)
    if declared is not None:
        return read_taps(declared)
    products = getattr(host, "products", None)
    if isinstance(products, torch.nn.ModuleList) and all(
        hasattr(getattr(block, "linear", None), "irreps_out") for block in products
    ):
        # As text: a host on cuequivariance's kernels has irreps of that library, and in each block of its features
        # (ir, mul) where e3nn has (mul, ir). Blocks stand in the same places, and scalars, which Φ reads, look alike.
        blocks: list[Any] = list(products)
        return read_taps({f"products.{i}": str(block.linear.irreps_out) for i, block in enumerate(blocks)})
    raise InputError(
        f"{type(host).__name__} is not built like mace (products[i].linear.irreps_out) and declares no phi_taps; give "
        "attach_phi(host, config, taps={'submodule.name': irreps, ...})."
    )


def _check_layout(name: str, block: torch.nn.Module) -> None:
    """InputError if a block's vectors are in another library's layout."""
    irreps = getattr(getattr(block, "linear", None), "irreps_out", None)
    if irreps is not None and not isinstance(irreps, o3.Irreps):
        raise InputError(
            f"multipoles is 1, but {name!r} runs on cuequivariance's kernels, where the components of vectors stand in "
            "another order. Leave the kernels (enable_cueq, only_cueq) out, or choose multipoles=0."
        )
