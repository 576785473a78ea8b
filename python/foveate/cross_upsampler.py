"""Cross-attention upsampling of features in its plain form, to compare UPLiFT (2601.17950) with.

JAFAR (2506.11136), of this kind, changes keys by the features too; here they come from the image alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.operators import attend
from foveate.plans import RunPlan, Rule


def windows_of_cells(height: int, width: int, window: int) -> list[Tensor]:
    """Where the rows of the window around each cell of a map begin and end, cut at the borders: [1, 1, cells, window] each."""
    reach = window // 2
    rows = torch.arange(height)[:, None] + torch.arange(-reach, reach + 1)  # [height, window]
    columns = torch.arange(width)
    first, end = (columns - reach).clamp(min=0), (columns + reach + 1).clamp(max=width)
    inside = ((rows >= 0) & (rows < height))[:, None, :]
    start = rows[:, None, :] * width + first[None, :, None]  # [height, width, window]
    length = torch.where(inside, (end - first)[None, :, None], 0)
    start = torch.where(inside, start, 0)
    return [t.flatten(0, 1)[None, None].int() for t in (start, start + length)]


class CrossAttentionUpsampler(nn.Module):
    """image [B, 3, any, any], features [B, C, H, W] -> [B, C, factor H, factor W]: every pixel is a mean of features, unchanged ones.

    Queries come from the image at the pixels' size, keys from the same map at the cells' size; heads share values, and their means
    are averaged.

    window:  odd: cells of a side around a pixel's own that it attends to; None: all of them, which costs factor ** 2 * (H * W) ** 2
    Raises ValueError: options or shapes that do not fit.

    >>> CrossAttentionUpsampler(window=3)(torch.zeros(1, 3, 32, 48), torch.ones(1, 8, 2, 3), factor=4).shape
    torch.Size([1, 8, 8, 12])
    """

    def __init__(self, width: int = 64, num_heads: int = 4, window: int | None = None):
        super().__init__()
        if min(width, num_heads) < 1 or width % num_heads or (window is not None and (window < 1 or window % 2 == 0)):
            raise ValueError(f"cross upsampler: width must be a multiple of num_heads >= 1 and window odd, got {width}, {num_heads} and {window}")
        self.num_heads, self.window = num_heads, window
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))
        self.norm_q, self.norm_k = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.to_q, self.to_k = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor, features: Tensor, factor: int) -> Tensor:
        if image.dim() != 4 or features.dim() != 4 or image.shape[0] != features.shape[0] or factor < 1:
            raise ValueError(
                f"cross upsampler: image must be [B, 3, h, w], features [B, C, H, W] and factor >= 1, got {list(image.shape)}, "
                f"{list(features.shape)} and {factor}"
            )
        height, width = features.shape[2:]
        guide = self.encoder(image)
        coarse = self.to_k(self.norm_k(F.interpolate(guide, size=(height, width), mode="area")))
        fine = self.to_q(self.norm_q(F.interpolate(guide, size=(factor * height, factor * width), mode="area")))
        heads = (self.num_heads, -1)
        # pixels of a cell one behind the other: they share their window
        q = fine.unflatten(1, heads).unflatten(4, (width, factor)).unflatten(3, (height, factor)).permute(0, 1, 3, 5, 4, 6, 2).flatten(2, 5)
        k = coarse.unflatten(1, heads).flatten(3).transpose(2, 3)
        v = features.flatten(2).transpose(1, 2)[:, None].to(q.dtype)
        plan = Rule.full()
        if self.window is not None:
            plan = RunPlan(factor**2, *windows_of_cells(height, width, self.window), rule=Rule.full())
        value_heads = torch.zeros(self.num_heads, dtype=torch.long)
        out = attend(q, k, v, plan, key_heads=torch.arange(self.num_heads), value_heads=value_heads).out.mean(1)
        out = out.to(features.dtype)
        return out.unflatten(1, (height, width, factor, factor)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
