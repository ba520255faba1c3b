"""Random choices that follow from a text alone: adding a molecule or a unit moves no other one."""

import hashlib

import numpy as np


def fraction(text: str) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def generator(text: str) -> np.random.Generator:
    """Random numbers of their own."""
    return np.random.default_rng(int(fraction(text) * 2**31))
