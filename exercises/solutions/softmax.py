"""The gradient of the cross-entropy of a softmax."""

import torch


def gradient(scores, labels):
    """dL/dscores `(N, classes)` of the mean cross-entropy, from scores `(N, classes)` and labels `(N,)`: (probability - truth) / N."""
    probabilities = scores.softmax(1)
    truth = torch.nn.functional.one_hot(labels, scores.shape[1])
    return (probabilities - truth) / len(labels)
