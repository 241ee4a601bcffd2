"""Activations and losses as loops that touch every number once.

    gate              gx = gy where y > 0 or NaN, else 0                                  the gradient of the rectifier
    sigmoid           y = 1 / (1 + exp(-x))                                               gx = gy * y * (1 - y)
    softmax           y[c] = exp(x[c]) / sum over c of exp(x[c])                          gx[c] = y[c] * (gy[c] - sum over c of gy[c]*y[c])
    cross-entropy     y = log(sum over c of exp(x[c])) - x[t]                             gx[c] = gy * (p[c] - [c = t]), p the softmax

Numbers come as one row, and the classes c as the second of three dimensions `(B, C, K)`, K neighbours in memory. The exponential is a
polynomial (range reduction and coefficients of Cephes), because the compiler has none for vector registers; its largest relative error is
1.3 roundings.
"""

import numpy as np

from cnn425.kernels.threads import loop, step, sums

LANES = 16


@loop
def gate(lo, hi, gy, y, gx):
    """gx = gy where the unit is active, else 0: an infinite or NaN gradient does not pass a closed gate. `(numbers)`, shared out."""
    g, active, result = gy[lo:hi], y[lo:hi], gx[lo:hi]
    for i in range(g.size):
        result[i] = 0 if active[i] <= 0 else g[i]


@step
def exponential(x):
    """exp(x) in float32: 2**n * exp(f) with |f| <= log(2)/2; infinite from 88.73 on, 0 below -103.98, NaN of NaN."""
    v = np.float32(0) if x != x else x
    v = np.float32(90) if v > np.float32(90) else v
    v = np.float32(-110) if v < np.float32(-110) else v
    n = np.floor(v * np.float32(1.44269504) + np.float32(0.5))
    f = v - n * np.float32(0.693359375)
    f = f + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    p = p * (f * f) + f + np.float32(1)
    half = np.int32(n) >> np.int32(1)  # in two steps, so that the smallest and the largest powers are right
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((np.int32(n) - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return x if x != x else p * first * second


@loop
def sigmoid(lo, hi, x, y):
    """y = 1 / (1 + exp(-x)), `(numbers)`, shared out."""
    numbers, result = x[lo:hi], y[lo:hi]
    for i in range(numbers.size):
        result[i] = np.float32(1) / (np.float32(1) + exponential(-numbers[i]))


@loop
def sigmoid_gradient(lo, hi, gy, y, gx):
    """gx = gy * y * (1 - y), `(numbers)`, shared out."""
    g, value, result = gy[lo:hi], y[lo:hi], gx[lo:hi]
    for i in range(g.size):
        result[i] = g[i] * ((1 - value[i]) * value[i])


@step
def largest(row, lanes):
    """The largest number of a row, NaNs aside, by way of a buffer of LANES numbers."""
    lanes[:] = -np.inf
    for first in range(0, row.size - LANES + 1, LANES):
        part = row[first : first + LANES]
        for k in range(LANES):
            lanes[k] = part[k] if part[k] > lanes[k] else lanes[k]
    top = lanes[0]
    for k in range(1, LANES):
        top = lanes[k] if lanes[k] > top else top
    for c in range(row.size // LANES * LANES, row.size):
        top = row[c] if row[c] > top else top
    return top


@step
def probabilities(x, y, top, total, lanes):
    """The softmax of one `(C, K)`, its largest numbers `top (K)` and the sums `total (K)` of exp(x - top)."""
    C, K = x.shape
    if K == 1:
        row, result = x.reshape(C), y.reshape(C)
        most, all_ = largest(row, lanes), x.dtype.type(0)
        for c in range(C):
            result[c] = exponential(row[c] - most)
            all_ += result[c]
        for c in range(C):
            result[c] /= all_
        top[0], total[0] = most, all_
        return
    for k in range(K):
        top[k] = x[0, k]
        total[k] = 0
    for c in range(1, C):
        row = x[c]
        for k in range(K):
            top[k] = row[k] if row[k] > top[k] else top[k]
    for c in range(C):
        row, result = x[c], y[c]
        for k in range(K):
            result[k] = exponential(row[k] - top[k])
            total[k] += result[k]
    for c in range(C):
        result = y[c]
        for k in range(K):
            result[k] /= total[k]


@sums
def softmax(lo, hi, x, y):
    """`(B, C, K) -> (B, C, K)`; the largest x is subtracted first, which changes nothing but keeps the exponentials finite."""
    K = x.shape[2]
    top, total, lanes = np.empty(K, x.dtype), np.empty(K, x.dtype), np.empty(LANES, x.dtype)
    for b in range(lo, hi):
        probabilities(x[b], y[b], top, total, lanes)


@sums
def softmax_gradient(lo, hi, gy, y, gx):
    """`(B, C, K), (B, C, K) -> (B, C, K)`."""
    _, C, K = y.shape
    total = np.empty(K, y.dtype)
    for b in range(lo, hi):
        if K == 1:
            g, value, result, both = gy[b].reshape(C), y[b].reshape(C), gx[b].reshape(C), y.dtype.type(0)
            for c in range(C):
                both += g[c] * value[c]
            for c in range(C):
                result[c] = value[c] * (g[c] - both)
            continue
        total[:] = 0
        for c in range(C):
            g, value = gy[b, c], y[b, c]
            for k in range(K):
                total[k] += g[k] * value[k]
        for c in range(C):
            g, value, result = gy[b, c], y[b, c], gx[b, c]
            for k in range(K):
                result[k] = value[k] * (g[k] - total[k])


@sums
def cross_entropy(lo, hi, x, target, ignored, y, p, wrong):
    """`x (B, C, K), target (B, K) -> y (B, K), p (B, C, K)`: the surprise, 0 where the target is ignored, and the softmax.

    A target that is no class is written to `wrong (2)`, with a 1 in the second place.
    """
    _, C, K = x.shape
    top, total, lanes = np.empty(K, x.dtype), np.empty(K, x.dtype), np.empty(LANES, x.dtype)
    for b in range(lo, hi):
        probabilities(x[b], p[b], top, total, lanes)
        for k in range(K):
            t = target[b, k]
            if t == ignored:
                y[b, k] = 0
            elif t < 0 or t >= C:
                wrong[0], wrong[1] = t, 1
            else:
                y[b, k] = np.log(total[k]) - (x[b, t, k] - top[k])


@loop
def cross_entropy_gradient(lo, hi, gy, p, target, ignored, gx):
    """`gy (B, K), p (B, C, K), target (B, K) -> gx (B, C, K)`."""
    _, C, K = p.shape
    for b in range(lo, hi):
        for c in range(C):
            row, result, g = p[b, c], gx[b, c], gy[b]
            for k in range(K):
                result[k] = (g[k] if target[b, k] != ignored else p.dtype.type(0)) * row[k]
        for k in range(K):
            if target[b, k] != ignored:
                gx[b, target[b, k], k] -= gy[b, k]
