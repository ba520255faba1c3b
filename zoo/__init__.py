"""Hosts that carry Φ, models by name, and trained models."""

from zoo.architectures import create_model
from zoo.generic import GenericModel
from zoo.hosts import Host, parameter_groups
from zoo.store.catalogue import list_models, model_info
from zoo.store.pretrained import load_pretrained

__all__ = ["GenericModel", "Host", "create_model", "list_models", "load_pretrained", "model_info", "parameter_groups"]
