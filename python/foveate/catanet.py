"""CATANet (2503.06896) as torch modules, with the names of the released weights; the same networks as foveate/models/vision/catanet.h."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.operators import attend
from foveate.plans import Rule
from foveate.sorted_groups import first_centres, nearest_centres, refine_centres, sort_by_centre, sorted_group_attention


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def projections(dim: int, qk_dim: int) -> nn.ModuleDict:
    sizes = dict(to_q=qk_dim, to_k=qk_dim, to_v=dim, proj=dim)
    return nn.ModuleDict({name: linear(dim, size) for name, size in sizes.items()})


def by_heads(tokens: Tensor, heads: int) -> Tensor:
    """[.., N, C] as [.., heads, N, C / heads]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-2, -3)


def check_heads(dim: int, qk_dim: int, heads: int):
    if heads < 1 or dim % heads or qk_dim % heads:
        raise ValueError(f"catanet: dim and qk_dim must be multiples of heads ({heads}), got {dim} and {qk_dim}")


class ConvFfn(nn.Module):
    """x [B, H, W, dim] -> the same: y + GELU(depthwise 5 x 5 of y) between two linear maps, y = GELU(first)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = linear(dim, hidden, bias=True)
        depthwise = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.dwconv = nn.Sequential(OrderedDict(depthwise_conv=nn.Sequential(depthwise, nn.GELU())))
        self.fc2 = linear(hidden, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.fc1(x))
        return self.fc2(y + self.dwconv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def normed(dim: int, fn: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim), fn=fn))


class TokenAggregation(nn.Module):
    """Tokens attend within groups of those alike and to `centres` centres; then a ConvFfn.  x [B, H, W, dim] -> the same.

    Buffers: means [centres, dim], the centres, and initted, whether they are any yet.  In training they are refined over the batch,
    `iterations` times, and kept as a moving average; else they stay as they are, and nothing depends on other images of the batch.
    refines_always: they are refined in inference too, from those kept, over what is given.
    group, window and merge as sorted_group_attention has them; decay: of the centres kept; uses_centres: whether tokens attend to them.
    """

    def __init__(
        self,
        dim: int = 40,
        qk_dim: int = 36,
        mlp_dim: int = 96,
        heads: int = 4,
        centres: int = 16,
        group: int = 256,
        *,
        iterations: int = 5,
        decay: float = 0.999,
        window: str = "next",
        merge: str = "sum",
        uses_centres: bool = True,
        refines_always: bool = False,
    ):
        super().__init__()
        check_heads(dim, qk_dim, heads)
        self.heads, self.iterations, self.decay = heads, iterations, decay
        self.uses_centres, self.refines_always = uses_centres, refines_always
        self.groups = dict(group=group, window=window, merge=merge)
        self.norm = nn.LayerNorm(dim)
        self.mlp = normed(dim, ConvFfn(dim, mlp_dim))
        self.irca_attn = nn.ModuleDict(dict(to_k=linear(dim, qk_dim), to_v=linear(dim, dim)))
        self.iasa_attn = projections(dim, qk_dim)
        self.register_buffer("means", torch.randn(centres, dim))
        self.register_buffer("initted", torch.tensor(False))
        self.conv1x1 = nn.Conv2d(dim, dim, 1, bias=False)

    def kept_centres(self, tokens: Tensor) -> Tensor:
        """The means, or what they begin with; chosen without a branch, so that a compiled graph holds both."""
        if tokens.shape[1] < len(self.means) and self.initted:  # too few to begin with
            return self.means
        return torch.where(self.initted, self.means, first_centres(tokens, len(self.means)).detach())

    @torch.no_grad()
    def keep(self, centres: Tensor):
        average = self.decay * self.means + (1 - self.decay) * centres
        self.means.copy_(torch.where(self.initted, average, centres))
        self.initted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(1, 2)  # [B, N, C]
        centres = self.kept_centres(tokens)
        if self.training or self.refines_always:
            centres = refine_centres(tokens, centres, self.iterations)
        order = sort_by_centre(nearest_centres(tokens, centres))
        shared = []
        if self.uses_centres:
            shared = [by_heads(self.irca_attn[name](centres.to(tokens.dtype)), self.heads) for name in ("to_k", "to_v")]
        q, k, v = (by_heads(self.iasa_attn[name](tokens), self.heads) for name in ("to_q", "to_k", "to_v"))
        attended = sorted_group_attention(q, k, v, order, *shared, **self.groups).transpose(1, 2).flatten(2)
        mixed = F.linear(self.iasa_attn["proj"](attended), self.conv1x1.weight.flatten(1))
        y = x + mixed.unflatten(1, x.shape[1:3])
        if self.training:
            self.keep(centres)
        return y + self.mlp(y)


def overlapping_patches(pixels: int, patch: int, halves_overlaps: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: [patches, patch] which pixels each has; for every pixel how many have it and what their sum is divided by."""
    regular = torch.arange(0, pixels - 2, patch - 2)
    starts = regular.clamp(max=pixels - patch)  # the last ends at the border
    places = torch.arange(pixels)

    def count(first, behind):
        return ((first[:, None] <= places) & (places < behind[:, None])).sum(0)

    covers = count(starts, starts + patch)
    divisors = 2 ** count(starts[1:], regular[1:] + 2) if halves_overlaps else covers
    return starts[:, None] + torch.arange(patch), covers, divisors


class PatchAttention(nn.Module):
    """Attention in patches that overlap by two pixels, whose results are averaged; then a ConvFfn.  x [B, H, W, dim] -> the same.

    patch: pixels of a side, >= 3 and not more than the map has.
    halves_overlaps: the released code halves each overlap once, and so divides by 4 where three patches meet.
    """

    def __init__(
        self, dim: int = 40, qk_dim: int = 36, mlp_dim: int = 96, heads: int = 4, patch: int = 16, *, halves_overlaps: bool = False
    ):
        super().__init__()
        check_heads(dim, qk_dim, heads)
        if patch < 3:
            raise ValueError(f"catanet: patches must be >= 3, got {patch}")
        self.heads, self.patch, self.halves_overlaps = heads, patch, halves_overlaps
        self.layer = nn.ModuleList([normed(dim, projections(dim, qk_dim)), normed(dim, ConvFfn(dim, mlp_dim))])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        rows, down, down_divisors = overlapping_patches(height, self.patch, self.halves_overlaps)
        columns, across, across_divisors = overlapping_patches(width, self.patch, self.halves_overlaps)
        ids = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten()
        maps = self.layer[0].fn
        tokens = self.layer[0].norm(x).flatten(1, 2)

        def by_patch(map):  # made once for each pixel, gathered for each patch: [B * patches, heads, pixels, d]
            return by_heads(map(tokens).index_select(1, ids).unflatten(1, (-1, self.patch**2)).flatten(0, 1), self.heads)

        q, k, v = (by_patch(maps[name]) for name in ("to_q", "to_k", "to_v"))
        attended = attend(q, k, v, Rule.full()).out.transpose(1, 2).flatten(2)
        sums = torch.zeros_like(tokens).index_add(1, ids, attended.unflatten(0, (len(x), -1)).flatten(1, 2))
        share = 1 / torch.outer(down_divisors, across_divisors).to(x.dtype)[..., None]  # [H, W, 1]
        kept = torch.outer(down, across)[..., None] * share
        y = x * kept + maps["proj"](sums.unflatten(1, (height, width)) * share)
        return y + self.layer[1](y)


class CATANet(nn.Module):
    """Super-resolution: image [B, in_chans, H, W] in [0, 1] -> [B, in_chans, upscale H, upscale W], upscale 1 .. 4.

    patches, centres, groups:  of each block, for its PatchAttention and its TokenAggregation
    aggregates:    whether blocks begin with a TokenAggregation; else centres and groups are not looked at
    aggregation:   further arguments of TokenAggregation.  With refines_always, inference goes image by image
    Raises ValueError: options that do not fit; images smaller than the largest patch.

    >>> CATANet(upscale=2).eval()(torch.zeros(1, 3, 28, 30)).shape
    torch.Size([1, 3, 56, 60])
    """

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        dim: int = 40,
        qk_dim: int = 36,
        mlp_dim: int = 96,
        heads: int = 4,
        patches: tuple[int, ...] = (16, 20, 24, 28, 16, 20, 24, 28),
        centres: tuple[int, ...] = (16, 32, 64, 128, 16, 32, 64, 128),
        groups: tuple[int, ...] = (256, 128, 64, 32, 256, 128, 64, 32),
        *,
        aggregates: bool = True,
        halves_overlaps: bool = False,
        **aggregation,
    ):
        super().__init__()
        if upscale not in (1, 2, 3, 4):
            raise ValueError(f"catanet: upscale must be 1 .. 4, got {upscale}")
        if not patches or aggregates and not len(patches) == len(centres) == len(groups):
            raise ValueError(
                "catanet: patches, centres and groups must be given for every block, "
                f"got {len(patches)}, {len(centres)} and {len(groups)}"
            )
        self.upscale, self.in_chans, self.smallest_side = upscale, in_chans, max(patches)
        self.splits_batch = aggregates and aggregation.get("refines_always", False)
        sizes = (dim, qk_dim, mlp_dim, heads)

        def conv(inputs, outputs):
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.first_conv = conv(in_chans, dim)
        self.blocks = nn.ModuleList()
        for i, patch in enumerate(patches):
            parts = OrderedDict()
            if aggregates:
                parts["0"] = TokenAggregation(*sizes, centres[i], groups[i], **aggregation)
            parts["1"] = PatchAttention(*sizes, patch, halves_overlaps=halves_overlaps)
            self.blocks.append(nn.Sequential(parts))
        self.mid_convs = nn.ModuleList(conv(dim, dim) for _ in patches)
        self.step = 2 if upscale == 4 else upscale
        self.upconvs = {1: [], 4: ["upconv1", "upconv2"]}.get(upscale, ["upconv"])
        for name in self.upconvs:
            self.add_module(name, conv(dim, dim * self.step**2))
        self.last_conv = conv(dim, in_chans)

    def deep(self, first: Tensor) -> Tensor:
        f = first
        for block, mid_conv in zip(self.blocks, self.mid_convs, strict=True):
            f = f + mid_conv(block(f.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2))
        return f + first

    def forward(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != self.in_chans:
            raise ValueError(f"catanet: the image must be [B, {self.in_chans}, H, W], got {list(image.shape)}")
        height, width = image.shape[2:]
        if min(height, width) < self.smallest_side:
            side = self.smallest_side
            raise ValueError(f"catanet: images must be at least {side} x {side} (the largest patch), got {height} x {width}")
        first = self.first_conv(image.contiguous(memory_format=torch.channels_last))
        if self.splits_batch and not self.training:  # so that no image depends on another
            f = torch.cat([self.deep(one) for one in first.split(1)])
        else:
            f = self.deep(first)
        for name in self.upconvs:
            f = F.leaky_relu(F.pixel_shuffle(getattr(self, name)(f), self.step), 0.1)
        base = image if self.upscale == 1 else F.interpolate(image, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return self.last_conv(f) + base
