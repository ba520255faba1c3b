"""e3nn's generated code, made once in a process: the tests build some hundreds of small models of the same irreps."""

import contextlib
import copy
import functools
from unittest.mock import patch

import torch

import phi_equivariant  # noqa: F401

from e3nn.math import _normalize_activation  # isort: skip  (after phi_equivariant, which makes e3nn 0.4.4 importable)
from e3nn.o3 import _linear  # isort: skip
from e3nn.o3._tensor_product import _tensor_product  # isort: skip
from e3nn.util.codegen import CodeGenMixin  # isort: skip


@contextlib.contextmanager
def generated_once():
    """Every linear map and tensor product gets a copy of its own of code that was generated and compiled before for the
    same arguments and precision, and an activation's norm is averaged once. None of it draws from the global generator,
    so models are the same to the last bit."""
    graphs, compiled, register = {}, {}, CodeGenMixin._codegen_register

    def remembering(generate):
        @functools.wraps(generate)
        def remembered(*given, **named):
            key = f"{generate.__name__} {given} {named} {torch.get_default_dtype()}"
            if key not in graphs:
                graphs[key] = generate(*given, **named)
            return graphs[key]

        return remembered

    def register_copies(self, functions):
        for name, graph in functions.items():
            key = graph.code, *((each, b.dtype, b.numpy().tobytes()) for each, b in graph.named_buffers())
            if key not in compiled:
                register(self, {name: graph})
                compiled[key] = getattr(self, name)
            else:
                register(self, {})  # the list of names that e3nn keeps
                self.__codegen__.append(name)
            setattr(self, name, copy.deepcopy(compiled[key]))

    product = "codegen_tensor_product_left_right"
    with (
        patch.object(_linear, "_codegen_linear", remembering(_linear._codegen_linear)),
        patch.object(_tensor_product, product, remembering(getattr(_tensor_product, product))),
        patch.object(CodeGenMixin, "_codegen_register", register_copies),
        patch.object(_normalize_activation, "moment", functools.cache(_normalize_activation.moment)),
    ):
        yield
