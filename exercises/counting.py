"""How many weights a layer has that sees an image of H x W pixels and answers with one unit per position of a K x K window."""


def weights(kind, h, w, k):
    """Weights without biases, stride 1, no padding; kind is "fully connected", "locally connected" or "convolution"."""
    raise NotImplementedError  # yours
