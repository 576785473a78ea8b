"""Halo attention (foveate/attention/local/halo.h) and its layer, with the signature and the parameters of timm's."""

import torch
from torch import Tensor, nn

from foveate.operators import Attended


def halo_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height: Tensor | None = None,
    width: Tensor | None = None,
    *,
    block: int = 8,
    halo: int = 3,
    stride: int = 1,
    padding: str = "zero",
    scale: float | None = None,
    scale_positions: bool = False,
    strided_index: bool = False,
    auto_pad: bool = False,
) -> Attended:
    """Blocks of a map attend to themselves and a border of `halo` pixels around them (HaloNet, 2103.12731).

    q [B, heads, H / stride, W / stride, d], k [B, heads, H, W, d], v [B, heads, H, W, dv]: one dtype, any strides.
    height, width:    relative position embeddings [2 * window - 1, d], window = block + 2 * halo, both or none
    padding:          keys outside of the map: "zero" (timm: zeros that take part), "mask" (none), "shift" (the window moves inside)
    scale_positions:  position logits are scaled as q . k is
    strided_index:    rows of strided queries count strided pixels, as timm's do
    auto_pad:         the map may end inside of blocks; else H and W must be multiples of block

    Returns out [B, heads, H / stride, W / stride, dv] and lse.  Gradients of all tensors; no window is copied.
    Raises ValueError: sizes, options or shapes that do not fit.

    >>> q = k = v = torch.ones(1, 2, 4, 4, 8)
    >>> halo_attend(q, k, v, block=2, halo=1).out.shape
    torch.Size([1, 2, 4, 4, 8])
    """
    return Attended(
        *torch.ops.foveate.halo_attend(
            q, k, v, height, width, block, halo, stride, padding, scale, scale_positions, strided_index, auto_pad
        )
    )  # fmt: skip


class PosEmbedRel(nn.Module):
    """Relative position embeddings of rows and of columns, [2 * window - 1, dim] each."""

    def __init__(self, window: int, dim: int, device=None, dtype=None):
        super().__init__()
        for name in ("height_rel", "width_rel"):
            setattr(self, name, nn.Parameter(torch.empty(2 * window - 1, dim, device=device, dtype=dtype)))


class HaloAttn(nn.Module):
    """The halo attention layer: x [B, dim, H, W] -> [B, dim_out, H / stride, W / stride].

    Arguments and parameters are those of timm.layers.HaloAttn (q.weight, kv.weight, pos_embed.height_rel, pos_embed.width_rel), so that
    its weights load; beyond them padding and auto_pad as halo_attend has them, strided_index (needed for timm's weights with stride 2),
    and out_proj: a linear map behind.  avg_down: with stride 2 attention at every pixel and means of 2 x 2.
    Raises ValueError: options that do not fit; block_size must be a multiple of stride unless avg_down.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        feat_size=None,  # of timm's other layers; not used
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        avg_down: bool = False,
        scale_pos_embed: bool = False,
        device=None,
        dtype=None,
        *,
        padding: str = "zero",
        auto_pad: bool = False,
        strided_index: bool = False,
        out_proj: bool = False,
    ):
        super().__init__()
        dim_out = dim_out or dim
        if num_heads < 1 or dim_out % num_heads != 0:
            raise ValueError(f"halo_attn: dim_out must be a multiple of num_heads ({num_heads}), got {dim_out}")
        if stride not in (1, 2):
            raise ValueError(f"halo_attn: stride must be 1 or 2, got {stride}")
        if block_size % stride != 0 and not avg_down:
            raise ValueError(f"halo_attn: block_size must be a multiple of stride unless avg_down, got {block_size} and {stride}")
        self.num_heads = num_heads
        self.dim_head_qk = dim_head or divisible_by_8(dim_out * qk_ratio) // num_heads
        self.pools = avg_down and stride == 2
        self.options = dict(
            block=block_size, halo=halo_size, stride=1 if avg_down else stride, padding=padding, auto_pad=auto_pad,
            scale_positions=scale_pos_embed, strided_index=strided_index,
        )  # fmt: skip
        placed = dict(device=device, dtype=dtype)
        keys = num_heads * self.dim_head_qk
        self.q = nn.Conv2d(dim, keys, 1, bias=qkv_bias, **placed)
        self.kv = nn.Conv2d(dim, keys + dim_out, 1, bias=qkv_bias, **placed)
        self.pos_embed = PosEmbedRel(block_size + 2 * halo_size, self.dim_head_qk, **placed)
        self.proj = nn.Conv2d(dim_out, dim_out, 1, **placed) if out_proj else None
        self.reset_parameters()

    def reset_parameters(self):
        for weight in (self.q.weight, self.kv.weight):
            nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
        for table in self.pos_embed.parameters():
            nn.init.trunc_normal_(table, std=self.dim_head_qk**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
        stride = self.options["stride"]

        def on_pixels(conv, pixels):
            return nn.functional.linear(pixels, conv.weight.flatten(1), conv.bias)

        def heads_first(y):
            return y.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)

        q = heads_first(on_pixels(self.q, pixels[:, ::stride, ::stride]))
        k, v = heads_first(on_pixels(self.kv, pixels)).tensor_split([self.dim_head_qk], dim=4)
        out = halo_attend(q, k, v, self.pos_embed.height_rel, self.pos_embed.width_rel, **self.options).out
        out = out.permute(0, 2, 3, 1, 4).flatten(3)
        if self.proj is not None:
            out = on_pixels(self.proj, out)
        out = out.permute(0, 3, 1, 2)
        return nn.functional.avg_pool2d(out, 2) if self.pools else out


def divisible_by_8(channels: float) -> int:
    """The multiple of 8 that timm rounds channels to: the nearest, but at least 8 and not less than nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
