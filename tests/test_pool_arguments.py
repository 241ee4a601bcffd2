"""The door of the pools: torch's forms are taken, torch's refusals are made, in words that name argument, value and wish."""

import numpy as np
import pytest
import torch
import torch.nn.functional as TF

from cnn425.nn import functional

X = torch.arange(2 * 3 * 7 * 7.0).view(2, 3, 7, 7)

ACCEPTED = {
    "int": 2,
    "tuple": (2, 3),
    "list": [2, 3],
    "one-tuple": (2,),
    "torch.Size": torch.Size((2, 3)),
    "NumPy integer": np.int64(2),
    "tensor": torch.tensor(2),
    "NumPy integers": (np.int64(2), np.int32(3)),
}


@pytest.mark.parametrize("form", ACCEPTED)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_forms_of_a_size(kind, form):
    ours, theirs = getattr(functional, f"{kind}_pool2d"), getattr(TF, f"{kind}_pool2d")
    assert torch.equal(ours(X, ACCEPTED[form]), theirs(X, ACCEPTED[form]))
    assert torch.equal(ours(X, 2, ACCEPTED[form]), theirs(X, 2, ACCEPTED[form]))


def test_an_empty_stride_is_the_kernel():
    assert torch.equal(functional.max_pool2d(X, 2, ()), TF.max_pool2d(X, 2, ()))


REFUSALS = {
    "float kernel": (lambda F: F.max_pool2d(X, 2.5), TypeError, "'kernel_size' must be tuple of ints, not float"),
    "bool kernel": (lambda F: F.max_pool2d(X, True), TypeError, "'kernel_size' must be tuple of ints, not bool"),
    "bool among ints": (lambda F: F.avg_pool2d(X, (True, 2)), TypeError, "found element of type bool at pos 0"),
    "None padding": (lambda F: F.avg_pool2d(X, 2, padding=None), TypeError, "'padding' must be tuple of ints, not NoneType"),
    "string": (lambda F: F.max_pool2d(X, "a"), TypeError, "not str"),
    "int ceil_mode": (lambda F: F.max_pool2d(X, 2, ceil_mode=1), TypeError, "'ceil_mode' must be bool, not int"),
    "int count_include_pad": (lambda F: F.avg_pool2d(X, 2, count_include_pad=1), TypeError, "'count_include_pad' must be bool"),
    "float divisor": (lambda F: F.avg_pool2d(X, 2, divisor_override=2.0), TypeError, "'divisor_override' must be int, not float"),
    "more than 64 bits": (lambda F: F.max_pool2d(X, 10**20), ValueError, "Overflow"),
    "three ints for an image": (
        lambda F: F.max_pool2d(X, (2, 2, 2)),
        RuntimeError,
        "kernel_size must either be a single int, or a tuple of two",
    ),
    "two ints for a signal": (lambda F: F.avg_pool1d(X[0], (2, 2)), RuntimeError, "should contain one int"),
    "stride zero": (lambda F: F.max_pool2d(X, 2, 0), RuntimeError, "stride should not be zero"),
    "stride negative": (lambda F: F.max_pool2d(X, 2, -1), RuntimeError, "stride should be greater than zero, but got dH: -1 dW: -1"),
    "kernel negative": (lambda F: F.avg_pool2d(X, -1), RuntimeError, "kernel size should be greater than zero, but got kH: -1 kW: -1"),
    "dilation zero": (lambda F: F.max_pool2d(X, 2, dilation=0), RuntimeError, "dilation should be greater than zero"),
    "padding negative": (lambda F: F.avg_pool2d(X, 2, padding=-1), RuntimeError, "pad must be non-negative, but got pad: -1"),
    "padding more than half": (
        lambda F: F.max_pool2d(X, 3, padding=2),
        RuntimeError,
        "pad should be at most half of effective kernel size",
    ),
    "divisor zero": (lambda F: F.avg_pool2d(X, 2, divisor_override=0), RuntimeError, "divisor must be not zero"),
    "too small": (lambda F: F.max_pool2d(X, 8), RuntimeError, r"Given input size: \(3x7x7\). Calculated output size: \(3x0x0\)"),
    "volume too small": (lambda F: F.avg_pool3d(X, 8), RuntimeError, r"input image \(T: 3 H: 7 W: 7\) smaller than kernel size"),
    "too few dimensions": (lambda F: F.max_pool2d(X[0, 0], 2), RuntimeError, "non-empty 3D or 4D"),
    "too few dimensions for an average": (lambda F: F.avg_pool2d(X[0, 0], 2), IndexError, "out of range"),
    "no channels": (lambda F: F.avg_pool2d(X[:, :0], 2), RuntimeError, "optional 0 dim batch size"),
    "bool image": (lambda F: F.max_pool2d(X.bool(), 2), NotImplementedError, "not implemented for 'Bool'"),
    "integer signal without indices": (lambda F: F.max_pool1d(X[0].long(), 2), NotImplementedError, "not implemented for 'Long'"),
    "integer average": (lambda F: F.avg_pool2d(X.int(), 2), NotImplementedError, "not implemented for 'Int'"),
    "sparse": (lambda F: F.max_pool2d(X.to_sparse(), 2), NotImplementedError, "Could not run"),
    "no tensor": (lambda F: F.max_pool2d([1.0], 2), TypeError, r"'input' \(position 1\) must be Tensor, not list"),
}


@pytest.mark.parametrize("which", REFUSALS)
def test_refusals_are_torchs(which):
    call, error, words = REFUSALS[which]
    with pytest.raises(error):
        call(TF)
    with pytest.raises(error, match=words):
        call(functional)
