"""How many weights a layer has that sees an image of H x W pixels and answers with one unit per position of a K x K window."""


def weights(kind, h, w, k):
    """Weights without biases, stride 1, no padding; kind is "fully connected", "locally connected" or "convolution"."""
    positions = (h - k + 1) * (w - k + 1)
    return {"fully connected": positions * h * w, "locally connected": positions * k * k, "convolution": k * k}[kind]
