import pytest

from phi_equivariant.elements import electronegativity
from phi_equivariant.errors import InputError


def test_known_values():
    # CRC Handbook: hydrogen, carbon, nitrogen, oxygen, fluorine, caesium, gold.
    known = {1: 2.20, 6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98, 55: 0.79, 79: 2.54}
    assert {z: electronegativity(z) for z in known} == known


def test_every_element_has_a_value_and_nothing_else_does():
    assert all(0.5 < electronegativity(z) < 4 for z in range(1, 119))
    with pytest.raises(InputError, match="119"):
        electronegativity(119)
