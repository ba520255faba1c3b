"""Addresses of the Hugging Face Hub, ``hf://owner/repository[@revision]/path``, where huggingface_hub is installed."""

import re

from phi_equivariant.errors import InputError

_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?/(?P<path>.+)")


def address_of(url):
    """The https address of a file and the headers to ask for it with; other addresses are given back as they are.

    Raises
    ------
    InputError
        If the address cannot be read, or huggingface_hub, which knows the user's token and endpoint, is missing.
    """
    if not url.startswith("hf://"):
        return url, {}
    match = _ADDRESS.fullmatch(url)
    if match is None:
        raise InputError(f"{url} is no address on the hub; write hf://owner/repository[@revision]/folder.")
    try:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise InputError(
            f"{url} is on the Hugging Face Hub, for which huggingface_hub is missing: "
            "pip install 'phi-equivariant[hub]'."
        ) from error
    return hf_hub_url(match["repo"], match["path"], revision=match["revision"]), build_hf_headers()
