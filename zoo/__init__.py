"""Hosts that carry Φ, models by name, and trained models."""

from typing import TYPE_CHECKING

from phi_equivariant.lazy import lazy_names

if TYPE_CHECKING:
    from zoo.architectures import create_model
    from zoo.generic import GenericModel
    from zoo.hosts import Host, parameter_groups
    from zoo.store.catalogue import list_models, model_info
    from zoo.store.pretrained import load_pretrained

__all__ = ["GenericModel", "Host", "create_model", "list_models", "load_pretrained", "model_info", "parameter_groups"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "GenericModel": "generic",
        "Host": "hosts",
        "create_model": "architectures",
        "list_models": "store.catalogue",
        "load_pretrained": "store.pretrained",
        "model_info": "store.catalogue",
        "parameter_groups": "hosts",
    },
)
