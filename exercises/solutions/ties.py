"""The gradient of max pooling over 2 x 2 pixels: all of it goes to the winner, and of equal pixels the first in reading order wins."""

import torch


def gradient(x, gy):
    """The gradient of an image `(H, W)`, H and W even, from that of its pooled half, gy `(H / 2, W / 2)`."""
    gx = torch.zeros_like(x)
    for i in range(gy.shape[0]):
        for j in range(gy.shape[1]):
            winner = int(x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten().argmax())  # the first of equal ones
            gx[2 * i + winner // 2, 2 * j + winner % 2] += gy[i, j]
    return gx
