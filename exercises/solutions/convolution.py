"""A convolution and the gradient of its weight, from windows[n,c,i,j,u,v] of the image: one `torch.einsum` each."""

import torch


def forward(windows, weight):
    """y[n,o,i,j] from windows `(N, C, I, J, U, V)` and weight `(O, C, U, V)`."""
    return torch.einsum("ncijuv,ocuv->noij", windows, weight)


def weight_gradient(windows, gy):
    """The gradient of the weight from that of the output, gy `(N, O, I, J)`."""
    return torch.einsum("noij,ncijuv->ocuv", gy, windows)
