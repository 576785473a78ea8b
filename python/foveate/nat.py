"""Neighborhood attention transformers: NAT (2204.07143), DiNAT and DiNAT_s (2209.15001); the same networks as in foveate/models/vision/nat.h.

Names of parameters are those of the published checkpoints, and of what `foveate train image-classifier` writes for nat and dinat.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.neighborhood import NeighborhoodAttention2D


class DropPath(nn.Module):
    """Whole samples lose the branch while training (Huang et al., 1603.09382); those that keep it have it enlarged."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.share
        return x * (keep / (1 - self.share)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.share}"


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class NATLayer(nn.Module):
    """x [B, h, w, dim] -> the same: neighborhood attention and an MLP, each behind a norm and plus its input.

    layer_scale:  where a factor for each channel of either branch begins; None: there is none
    Maps that are shorter than kernel_size * dilation are padded with zeros, which are keys (as published).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        rel_pos_bias: bool = True,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = NeighborhoodAttention2D(
            dim, num_heads, kernel_size, dilation=dilation, qkv_bias=qkv_bias, qk_scale=qk_scale, proj_drop=drop, rel_pos_bias=rel_pos_bias,
            pads_small_grids=True,
        )  # fmt: skip
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        for name in ("gamma1", "gamma2"):
            self.register_parameter(name, None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale)))

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch, gamma in ((self.norm1, self.attn, self.gamma1), (self.norm2, self.mlp, self.gamma2)):
            y = branch(norm(x))
            x = x + self.drop_path(y if gamma is None else gamma * y)
        return x


class NATTokenizer(nn.Module):
    """Images [B, in_chans, H, W] -> tokens [B, h, w, dim]: convolutions of 3 x 3 that halve, or one of patch x patch (DiNAT_s)."""

    def __init__(self, dim: int, patch: int = 4, in_chans: int = 3, embeds_patches: bool = False):
        super().__init__()
        self.patch = patch if embeds_patches else 1
        if embeds_patches:
            self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        else:
            steps = patch.bit_length() - 1
            if patch < 2 or patch != 1 << steps or dim % (patch // 2):
                raise ValueError(f"nat: convolutions need a patch of 2, 4, 8 .. and a multiple of half of it for dim, got {patch} and {dim}")
            widths = [in_chans] + [dim >> (steps - 1 - i) for i in range(steps)]
            self.proj = nn.Sequential(*(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths[:-1], widths[1:], strict=True)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        height, width = (-n % self.patch for n in image.shape[-2:])
        return self.norm(self.proj(F.pad(image, [0, width, 0, height])).permute(0, 2, 3, 1))


class NATDownsampler(nn.Module):
    """[B, h, w, dim] -> [B, ceil(h / 2), ceil(w / 2), 2 dim]: a convolution of 3 x 3, or 2 x 2 tokens and a linear map (DiNAT_s)."""

    def __init__(self, dim: int, merges_patches: bool = False):
        super().__init__()
        self.merges_patches = merges_patches
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False) if merges_patches else nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(4 * dim if merges_patches else 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        if not self.merges_patches:
            return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = F.pad(x, [0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2])
        tokens = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(tokens, -1)))


class NATLevel(nn.Module):
    def __init__(self, layers: list[NATLayer], downsample: NATDownsampler | None):
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(layers), downsample


class NAT(nn.Module):
    """Images [B, in_chans, H, W] of any size -> scores [B, num_classes]; `maps` gives what dense prediction reads.

    embed_dim:    channels of the first level, doubled at each one
    depths, num_heads:  of each level
    dilations:    of each layer of each level; None: 1 everywhere (NAT)
    drop_path:    of the last layer, growing from 0
    patch:        pixels of a token at the first level
    embeds_patches, merges_patches:  as DiNAT_s does (NATTokenizer, NATDownsampler)
    levels:       what the checkpoint calls the list of levels, and of layers where there is one level: "layers" in DiNAT_s
    out_indices:  levels whose maps `maps` gives, from the first on, each behind a norm of its own, norm0 ..
    num_classes:  0: no last norm and head: a backbone

    Linear weights begin truncated normal of 0.02.
    Raises ValueError: options that do not fit.

    >>> net = NAT(32, depths=(2, 2), num_heads=(2, 4), kernel_size=3, dilations=((1, 2), (1, 2)), num_classes=10)
    >>> net(torch.randn(2, 3, 32, 40)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        patch: int = 4,
        embeds_patches: bool = False,
        merges_patches: bool = False,
        levels: str = "levels",
        out_indices: Sequence[int] = (),
    ):
        super().__init__()
        dilations = dilations or [[1] * depth for depth in depths]
        if min([*depths, *num_heads, patch], default=0) < 1 or not depths:
            raise ValueError(f"nat: depths, num_heads and patch must be >= 1, got {list(depths)}, {list(num_heads)} and {patch}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"nat: drop_path must be in [0, 1), got {drop_path}")
        if num_classes < (0 if out_indices else 1):
            raise ValueError(f"nat: num_classes must be >= 1, or 0 with out_indices, got {num_classes}")
        if not len(depths) == len(num_heads) == len(dilations) or [len(d) for d in dilations] != list(depths):
            raise ValueError(f"nat: num_heads and dilations must fit depths {list(depths)}, got {list(num_heads)} and {dilations}")
        if any(not 0 <= level < len(depths) for level in out_indices):
            raise ValueError(f"nat: out_indices must be levels 0 .. {len(depths) - 1}, got {list(out_indices)}")
        self.patch_embed = NATTokenizer(embed_dim, patch, in_chans, embeds_patches)
        shares = iter(drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths)))
        all_levels = []
        for i, (heads, own) in enumerate(zip(num_heads, dilations, strict=True)):
            dim = embed_dim << i
            layers = [NATLayer(dim, heads, kernel_size, d, mlp_ratio, drop_path=next(shares), layer_scale=layer_scale) for d in own]
            all_levels.append(NATLevel(layers, NATDownsampler(dim, merges_patches) if i + 1 < len(depths) else None))
        self.add_module(levels, nn.ModuleList(all_levels) if len(depths) > 1 else all_levels[0].blocks)
        self.name_of_levels, self.is_isotropic = levels, len(depths) == 1
        self.out_indices = tuple(sorted(out_indices))
        for level in self.out_indices:
            self.add_module(f"norm{level}", nn.LayerNorm(embed_dim << level))
        self.norm = nn.LayerNorm(dim) if num_classes else None
        self.head = nn.Linear(dim, num_classes) if num_classes else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def level_maps(self, image: Tensor):
        """[B, h, w, C] of each level, before it is downsampled."""
        x = self.patch_embed(image)
        levels = getattr(self, self.name_of_levels)
        for level in [levels] if self.is_isotropic else levels:
            for layer in level if self.is_isotropic else level.blocks:
                x = layer(x)
            yield x
            if not self.is_isotropic and level.downsample is not None:
                x = level.downsample(x)

    def maps(self, image: Tensor) -> list[Tensor]:
        """[B, C, h, w] of the levels of out_indices."""
        maps = enumerate(self.level_maps(image))
        return [getattr(self, f"norm{level}")(x).permute(0, 3, 1, 2) for level, x in maps if level in self.out_indices]

    def features(self, image: Tensor) -> Tensor:
        """What the head averages: [B, C, h, w] behind the last norm."""
        if self.norm is None:
            raise ValueError("nat: num_classes must be >= 1 for scores and their features, got 0; maps has this backbone's")
        for x in self.level_maps(image):
            last = x
        return self.norm(last).permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).mean((2, 3)))
