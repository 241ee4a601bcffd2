"""Activations and losses as loops that touch every number once.

    gate              gx = gy where y > 0 or NaN, else 0                                  the gradient of the rectifier
    sigmoid           y = 1 / (1 + exp(-x))                                               gx = gy * y * (1 - y)
    softmax           y[c] = exp(x[c]) / sum over c of exp(x[c])                          gx[c] = y[c] * (gy[c] - sum over c of gy[c]*y[c])
    cross-entropy     y = log(sum over c of exp(x[c])) - x[t]                             gx[c] = gy * (p[c] - [c = t]), p the softmax

Elementwise loops take a row of numbers. Classes c are the second of three dimensions `(B, C, K)`, of which K is contiguous in memory. The
exponential is a polynomial (range reduction and coefficients of Cephes), because the compiler has none for vector registers; its largest
relative error is 1.3 unit roundoffs.
"""

import numpy as np

from cnn425.kernels.threads import loop, step, sums

BLOCK, NUMBERS = 1 << 8, 1 << 11  # k or rows per block, and numbers in the rows of a block: they stay in the L1 cache


@loop
def gate(lo, hi, gy, y, gx):
    """gx = gy where the unit is active, else 0, even where gy is infinite or NaN. `(numbers)`, shared out."""
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
def logarithm(x):
    """log(x) of a float32 from 1 on: x = 2**n * (1 + f) with 1 + f from sqrt(1/2) to sqrt(2)."""
    bits = np.float32(x).view(np.int32) - np.int32(0x3F3504F3)
    n = np.float32(bits >> np.int32(23))
    f = np.int32((bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)).view(np.float32) - np.float32(1)
    p = np.float32(7.0376836292e-2) * f - np.float32(1.1514610310e-1)
    p = p * f + np.float32(1.1676998740e-1)
    p = p * f - np.float32(1.2420140846e-1)
    p = p * f + np.float32(1.4249322787e-1)
    p = p * f - np.float32(1.6668057665e-1)
    p = p * f + np.float32(2.0000714765e-1)
    p = p * f - np.float32(2.4999993993e-1)
    p = p * f + np.float32(3.3333331174e-1)
    small = p * f * f * f - n * np.float32(2.12194440e-4) - np.float32(0.5) * f * f
    return x if x != x or x == np.inf else f + small + n * np.float32(0.693359375)


@step
def ordered_bits(bits):
    """Map the bits of float32 to int32 in the same order; the map is its own inverse. NaNs are at the ends."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@step
def largest(row):
    """The largest number of a row, or NaN; compared as integers, which the compiler vectorises."""
    bits, top = row.view(np.int32), np.int32(-(2**31))
    for c in range(bits.size):
        top = max(top, ordered_bits(bits[c]))
    return np.int32(ordered_bits(top)).view(np.float32)


def rows_of(C):
    """How many rows of C numbers are taken at a time."""
    return max(1, min(BLOCK, NUMBERS // C))


rows_at_once = step(rows_of)


@step
def part(unit, B, C, K):
    """The bounds of block `unit` of `(B, C, K)`: first b, end of b, first k, end of k; ends are exclusive.

    A block has several k of one b, or, if K is 1, several b.
    """
    if K == 1:
        return unit * rows_at_once(C), min(B, (unit + 1) * rows_at_once(C)), 0, 1
    blocks = (K + BLOCK - 1) // BLOCK
    return unit // blocks, unit // blocks + 1, unit % blocks * BLOCK, min(K, (unit % blocks + 1) * BLOCK)


@step
def probabilities(x, y, unit, top, total):
    """The softmax of a block, its largest numbers and its sums of exp(x - top). Loops are short, so that each fits vector registers."""
    B, C, K = x.shape
    first, last, start, stop = part(unit, B, C, K)
    if K == 1:
        given, found = x.reshape(x.size), y.reshape(y.size)
        for b in range(first, last):
            row, result = given[b * C : (b + 1) * C], found[b * C : (b + 1) * C]
            most = largest(row)
            for c in range(C):
                result[c] = row[c] - most
            top[b - first] = most
        numbers = found[first * C : last * C]
        for i in range(numbers.size):
            numbers[i] = exponential(numbers[i])
        for b in range(first, last):
            result, all_ = found[b * C : (b + 1) * C], x.dtype.type(0)
            for c in range(C):
                all_ += result[c]
            total[b - first], share = all_, x.dtype.type(1) / all_
            for c in range(C):
                result[c] *= share
        return
    top[: stop - start] = x[first, 0, start:stop]
    total[: stop - start] = 0
    for c in range(1, C):
        row = x[first, c, start:stop]
        for k in range(row.size):
            top[k] = row[k] if row[k] > top[k] else top[k]
    for c in range(C):
        row, result = x[first, c, start:stop], y[first, c, start:stop]
        for k in range(row.size):
            result[k] = exponential(row[k] - top[k])
        for k in range(row.size):
            total[k] += result[k]
    for c in range(C):
        result = y[first, c, start:stop]
        for k in range(result.size):
            result[k] /= total[k]


@sums
def softmax(lo, hi, x, y):
    """`(B, C, K) -> (B, C, K)`; the largest x is subtracted first, which changes nothing but keeps the exponentials finite.

    Blocks are shared out, here and below.
    """
    top, total = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
    for unit in range(lo, hi):
        probabilities(x, y, unit, top, total)


@sums
def softmax_gradient(lo, hi, gy, y, gx):
    """`(B, C, K), (B, C, K) -> (B, C, K)`."""
    B, C, K = y.shape
    total, upstream, found, gradient = np.empty(BLOCK, y.dtype), gy.reshape(gy.size), y.reshape(y.size), gx.reshape(gx.size)
    for unit in range(lo, hi):
        first, last, start, stop = part(unit, B, C, K)
        for b in range(first, last if K == 1 else first):
            g, value, result = upstream[b * C : (b + 1) * C], found[b * C : (b + 1) * C], gradient[b * C : (b + 1) * C]
            both = y.dtype.type(0)
            for c in range(C):
                both += g[c] * value[c]
            for c in range(C):
                result[c] = value[c] * (g[c] - both)
        total[:] = 0
        for c in range(0 if K == 1 else C):
            g, value = gy[first, c, start:stop], y[first, c, start:stop]
            for k in range(g.size):
                total[k] += g[k] * value[k]
        for c in range(0 if K == 1 else C):
            g, value, result = gy[first, c, start:stop], y[first, c, start:stop], gx[first, c, start:stop]
            for k in range(g.size):
                result[k] = value[k] * (g[k] - total[k])


@sums
def cross_entropy(lo, hi, x, target, ignored, y, p):
    """`x (B, C, K), target (B, K) -> y (B, K), p (B, C, K)`: the negative log-probability, 0 of an ignored target, and the softmax."""
    B, C, K = x.shape
    top, total = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
    for unit in range(lo, hi):
        probabilities(x, p, unit, top, total)
        first, last, start, stop = part(unit, B, C, K)
        for b in range(first, last):
            for k in range(start, stop):
                t, here = target[b, k], b - first + k - start
                if t != ignored and 0 <= t < C:
                    top[here] = x[b, t, k] - top[here]  # stored first, or the compiler would add top and the logarithm
                else:
                    top[here], total[here] = 0, 1
        losses = y.reshape(y.size)[first * K + start : (last - 1) * K + stop]
        for k in range(losses.size):
            losses[k] = logarithm(total[k]) - top[k]


@loop
def mean_of_targets(lo, hi, y, target, C, ignored, mean, count, wrong):
    """The mean of y over the targets that are not ignored, and their number: `y, target (numbers) -> mean (1), count (1)`; one unit.

    A target that is not one of the C classes is written to wrong[0], and wrong[1] is set to 1.
    """
    total, found = 0.0, 0
    wrong[1] = 0
    for i in range(y.size):
        if target[i] != ignored:
            total, found = total + y[i], found + 1
            if target[i] < 0 or target[i] >= C:
                wrong[0], wrong[1] = target[i], 1
    mean[0], count[0] = total / found if found else np.nan, found


@loop
def cross_entropy_gradient(lo, hi, gy, p, target, ignored, gx, wrong):
    """`gy (B, K), p (B, C, K), target (B, K) -> gx (B, C, K)`.

    A target that is not one of the C classes, since it was changed after the loss, is written to wrong[0], and wrong[1] is set to 1.
    """
    B, C, K = p.shape
    factors, found, gradient = np.empty(BLOCK, p.dtype), p.reshape(p.size), gx.reshape(gx.size)
    for unit in range(lo, hi):
        first, last, start, stop = part(unit, B, C, K)
        for b in range(first, last):
            for k in range(start, stop):
                factors[k - start] = gy[b, k] if target[b, k] != ignored else p.dtype.type(0)
            if K == 1:
                row, result, factor = found[b * C : (b + 1) * C], gradient[b * C : (b + 1) * C], factors[0]
                for c in range(C):
                    result[c] = factor * row[c]
            for c in range(0 if K == 1 else C):
                row, result = p[b, c, start:stop], gx[b, c, start:stop]
                for k in range(row.size):
                    result[k] = factors[k] * row[k]
            for k in range(start, stop):
                t = target[b, k]
                if t != ignored and 0 <= t < C:
                    gx[b, t, k] -= gy[b, k]
                elif t != ignored:
                    wrong[0], wrong[1] = t, 1
