"""Trained models: carried, checked, loaded and shared. Its modules import themselves when they are asked for."""

from typing import TYPE_CHECKING

from phi_equivariant.lazy import lazy_names

if TYPE_CHECKING:
    from zoo.store import card, catalogue, export, find, pretrained, publish

__all__ = ["card", "catalogue", "export", "find", "pretrained", "publish"]

__getattr__, __dir__ = lazy_names(__name__, {})
