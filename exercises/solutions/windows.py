"""The windows of an image as a view: nothing is copied."""


def windows(x, k, s):
    """windows[n,c,i,j,u,v] = x[n, c, i*s + u, j*s + v], from a contiguous x `(N, C, H, W)`. `Tensor.as_strided` makes the view."""
    n, c, h, w = x.shape
    i, j = (h - k) // s + 1, (w - k) // s + 1
    return x.as_strided((n, c, i, j, k, k), (c * h * w, h * w, s * w, s, w, 1))
