"""Makes e3nn importable: every module that imports it, or mace, imports this one first."""

import torch

# e3nn 0.4.4 reads its constants from a file that holds a slice, which torch >= 2.6 refuses unless declared safe.
torch.serialization.add_safe_globals([slice])
