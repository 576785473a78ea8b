"""The residual block of HaloNets (2103.12731), with the names of timm's; the same block as in foveate/models/vision/halonet.h."""

from collections import OrderedDict

from torch import Tensor, nn

from foveate.halo import HaloAttn


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class HaloBlock(nn.Module):
    """1 x 1 convolution to `width`, halo attention, 1 x 1 convolution to `dim_out`, plus the input.

    x [B, dim, H, W] -> [B, dim_out, H / stride, W / stride]

    attention:  further arguments of HaloAttn; its dim_out may be wider than `width`
    projects:   the shortcut has a convolution even where sizes agree
    Parameters are those of timm's SelfAttnBlock (conv1_1x1.conv.weight, self_attn.q.weight, post_attn.weight, shortcut.bn.bias, ..).
    """

    def __init__(
        self,
        dim: int,
        width: int,
        dim_out: int | None = None,
        stride: int = 1,
        *,
        activation: type[nn.Module] = nn.SiLU,
        projects: bool = False,
        **attention,
    ):
        super().__init__()
        dim_out = dim_out or dim
        attention = dict(dim_out=width) | attention
        self.shortcut = conv_bn(dim, dim_out, stride) if projects or dim != dim_out or stride != 1 else nn.Identity()
        self.conv1_1x1 = conv_bn(dim, width)
        self.self_attn = HaloAttn(width, stride=stride, **attention)
        self.post_attn = nn.BatchNorm2d(attention["dim_out"])
        self.conv3_1x1 = conv_bn(attention["dim_out"], dim_out)
        nn.init.zeros_(self.conv3_1x1.bn.weight)  # a block adds nothing at first
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv1_1x1(x))
        y = self.act(self.post_attn(self.self_attn(y)))
        return self.act(self.conv3_1x1(y) + self.shortcut(x))
