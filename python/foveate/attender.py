"""The Local Attender (foveate/attention/local/attender.h) and its layer, with the parameters of UPLiFT's."""

import torch
from torch import Tensor, nn

OFFSETS = {
    5: lambda row, column: abs(row) + abs(column) <= 1,
    9: lambda row, column: max(abs(row), abs(column)) <= 1,
    13: lambda row, column: abs(row) + abs(column) <= 2,
    17: lambda row, column: max(abs(row), abs(column)) <= 1 or (row % 2 == 0 and column % 2 == 0),
    25: lambda row, column: True,
}


def attender_offsets(count: int) -> list[tuple[int, int]]:
    """The published set of 5, 9, 13, 17 or 25 offsets (row, column), in the order of a checkpoint's channels.

    >>> attender_offsets(5)
    [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
    """
    if count not in OFFSETS:
        raise ValueError(f"local attender: the number of offsets must be 5, 9, 13, 17 or 25, got {count}")
    square = [(row, column) for row in range(-2, 3) for column in range(-2, 3)]
    return [offset for offset in square if OFFSETS[count](*offset)]


def check_weights(weights: str):
    if weights not in ("softmax", "largest"):
        raise ValueError(f"local attender: weights must be softmax or largest, got {weights!r}")


def local_attender(logits: Tensor, value: Tensor, offsets: list[tuple[int, int]], weights: str = "softmax") -> Tensor:
    """Every pixel of a fine map as a mean of the coarse values around its cell (UPLiFT, 2601.17950).

    logits [B, n, I * H, I * W] and value [B, C, H, W] -> [B, C, I * H, I * W] in value's dtype, channels last in memory: softmax over
    the n offsets (row, column), in cells; those that leave the map stop at its border.  Gradients of both.
    weights: "softmax", or "largest": the value of the largest logit alone, ties to the first; logits then have no gradient.  Values
    must be finite: those around count 0 times.
    Raises ValueError: shapes that do not fit.

    >>> local_attender(torch.zeros(1, 5, 4, 4), torch.ones(1, 3, 2, 2), attender_offsets(5)).shape
    torch.Size([1, 3, 4, 4])
    """
    check_weights(weights)
    if weights == "largest":
        if logits.dim() != 4 or not logits.shape[1]:
            raise ValueError(f"local attender: logits must be [B, n >= 1, I * H, I * W], got {list(logits.shape)}")
        logits = torch.full_like(logits, -torch.inf).scatter_(1, logits.argmax(1, keepdim=True), 0)
    rows, columns = zip(*offsets, strict=True)
    return torch.ops.foveate.weigh_offsets(value, logits, list(rows), list(columns))


class LocalAttender(nn.Module):
    """guide [B, in_channels, I * H, I * W], value [B, C, H, W] -> [B, C, I * H, I * W]; parameters conv1.weight and conv1.bias.

    conv_res: the guide's first channels are added to the logits, as in the released weights.
    weights:  as in local_attender
    """

    def __init__(
        self, in_channels: int, num_connected: int = 17, conv_res: bool = True, device=None, dtype=None, *, weights: str = "softmax"
    ):  # fmt: skip
        super().__init__()
        check_weights(weights)
        self.weights = weights
        self.offsets = attender_offsets(num_connected)
        self.conv_res = conv_res
        self.conv1 = nn.Conv2d(in_channels, num_connected, 1, device=device, dtype=dtype)

    def forward(self, guide: Tensor, value: Tensor) -> Tensor:
        logits = self.conv1(guide)
        if self.conv_res:
            shared = min(logits.shape[1], guide.shape[1])
            logits = torch.cat([logits[:, :shared] + guide[:, :shared], logits[:, shared:]], 1)
        return local_attender(logits, value, self.offsets, self.weights)
