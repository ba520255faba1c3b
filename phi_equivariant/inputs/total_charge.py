"""The total charge of a structure, from where people write it."""

import math

import numpy as np

from phi_equivariant.errors import InputError

KEYS = ("total_charge", "charge")


def total_charge_of(info, keys=KEYS):
    """Total charge in e from ``atoms.info``; 0 where none of the keys is there.

    Parameters
    ----------
    info: ``atoms.info``
    keys: names to look for; all that are there must agree

    Raises
    ------
    InputError
        For a charge that is not a finite number, or two that differ.
    """
    found = {}
    for key in keys:
        if info.get(key) is None:
            continue
        given = np.asarray(info[key])
        value = float(given.item()) if given.size == 1 and given.dtype.kind in "iuf" else math.nan
        if not math.isfinite(value):
            raise InputError(f"info[{key!r}] is {info[key]!r}; the total charge must be a finite number, in e.")
        found[key] = value
    if len(set(found.values())) > 1:
        raise InputError(f"the total charge is given twice and differs: {found}; leave one out.")
    return next(iter(found.values()), 0.0)
