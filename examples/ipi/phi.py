"""What i-PI loads as the potential: pes_path of <ffdirect>, or -P of i-pi-py_driver."""

from phi_equivariant.engines.ipi import PhiDriver

__all__ = ["PhiDriver"]
__DRIVER_NAME__ = "phi"
__DRIVER_CLASS__ = "PhiDriver"
