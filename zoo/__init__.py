"""Hosts that carry Φ."""

from zoo.hosts import Host, parameter_groups

__all__ = ["Host", "parameter_groups"]
