"""The gradient of average pooling."""

import torch


def gradient(gy, size, k, s):
    """The gradient of an image `(N, C, *size)` whose K x K windows, S pixels apart, were averaged; gy is `(N, C, I, J)`.

    A pixel that lies in several windows gets something from each.
    """
    gx = torch.zeros(*gy.shape[:2], *size, dtype=gy.dtype)
    for i in range(gy.shape[2]):
        for j in range(gy.shape[3]):
            gx[:, :, i * s : i * s + k, j * s : j * s + k] += gy[:, :, i, j, None, None] / k**2
    return gx
