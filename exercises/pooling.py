"""The gradient of average pooling."""


def gradient(gy, size, k, s):
    """The gradient of an image `(N, C, *size)` whose K x K windows, S pixels apart, were averaged; gy is `(N, C, I, J)`.

    A pixel that lies in several windows gets something from each.
    """
    raise NotImplementedError  # yours
