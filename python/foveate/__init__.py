"""Every attention, one engine: attention over the keys that a plan names, with gradients, on the CPU.

>>> import torch, foveate
>>> q = torch.randn(1, 4, 16, 32); k = torch.randn(1, 2, 16, 32); v = torch.randn(1, 2, 16, 32)
>>> out, lse = foveate.attend(q, k, v, foveate.Rule(window_left=7, sinks=2))
>>> out.shape
torch.Size([1, 4, 16, 32])
"""

from foveate import _library

_library.load()

import torch  # noqa: E402

from foveate import catalogue, convert  # noqa: E402
from foveate.attender import LocalAttender, attender_offsets, local_attender  # noqa: E402
from foveate.catalogue import *  # noqa: E402, F403
from foveate.catanet import CATANet, ConvFfn, PatchAttention, TokenAggregation  # noqa: E402
from foveate.cross_upsampler import CrossAttentionUpsampler  # noqa: E402
from foveate.halo import HaloAttn, halo_attend  # noqa: E402
from foveate.halonet import HaloBlock  # noqa: E402
from foveate.nat import NAT, NATDownsampler, NATLayer, NATTokenizer  # noqa: E402
from foveate.registry import Mechanism, Rotary, mechanism, mechanisms  # noqa: E402
from foveate.neighborhood import (  # noqa: E402
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
    explain_neighborhood,
    merge_attentions,
    na1d,
    na2d,
    na3d,
    na_av,
    na_qk,
    neighborhood_attention,
    neighborhood_by_head,
)
from foveate.operators import Attended, Relative, attend, dequantise_rows, quantise_rows  # noqa: E402
from foveate.plans import BlockPlan, Plan, Rule, RunPlan, TokenPlan  # noqa: E402
from foveate.sdpa import scaled_dot_product_attention  # noqa: E402
from foveate.sorted_groups import (  # noqa: E402
    first_centres,
    nearest_centres,
    refine_centres,
    sort_by_centre,
    sorted_group_attention,
)
from foveate.uplift import UPLiFT  # noqa: E402

__version__ = torch.ops.foveate.version()
__all__ = [
    "Attended",
    "BlockPlan",
    "CATANet",
    "ConvFfn",
    "CrossAttentionUpsampler",
    "HaloAttn",
    "HaloBlock",
    "LocalAttender",
    "Mechanism",
    "NAT",
    "NATDownsampler",
    "NATLayer",
    "NATTokenizer",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "PatchAttention",
    "Plan",
    "Relative",
    "Rotary",
    "Rule",
    "RunPlan",
    "TokenAggregation",
    "TokenPlan",
    "UPLiFT",
    "attend",
    "attender_offsets",
    "convert",
    "dequantise_rows",
    "explain_neighborhood",
    "first_centres",
    "halo_attend",
    "local_attender",
    "mechanism",
    "mechanisms",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "na_av",
    "na_qk",
    "nearest_centres",
    "neighborhood_attention",
    "neighborhood_by_head",
    "quantise_rows",
    "refine_centres",
    "scaled_dot_product_attention",
    "sort_by_centre",
    "sorted_group_attention",
    *catalogue.__all__,
]
