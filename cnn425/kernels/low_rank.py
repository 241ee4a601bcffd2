"""Mixtures of R convolutions, of their outputs or of their weights, as loops; position p has the coefficients m[r,p].

    outputs          y[n,o,p] = b[o] + sum over r of m[r,p] * a[n,o,r,p]
    its gradients    ga[n,o,r,p] = m[r,p] * gy[n,o,p]        gm[r,p] = sum over n, o of gy[n,o,p] * a[n,o,r,p]
    weights          v[p,k] = sum over r of m[r,p] * w[r,k]               k = (o, c, t, u, v) a number of a weight
    its gradients    gw[r,k] = sum over p of m[r,p] * gv[p,k]        gm[r,p] = sum over k of gv[p,k] * w[r,k]

The last index is contiguous. A line of it is taken at a time, which stays in the L1 cache. The gradient of m is found in parts, to be added
up: short sums round less.
"""

from cnn425.kernels.threads import loop, sums

LINE, ROWS = 1024, 64  # positions of a line, and rows (n, o) of a part
SOME = 256  # weights of a line


@loop
def mix(lo, hi, a, m, b, y):
    """The outputs: `a (N*O, R, P), m (R, P), b (O) or (1) -> y (N*O, P)`; rows are shared out."""
    (R, P), B = m.shape, b.size
    for row in range(lo, hi):
        for p in range(0, P, LINE):
            line = y[row, p : p + LINE]
            line[:] = b[row % B]
            for r in range(R):
                numbers, weights = a[row, r, p : p + LINE], m[r, p : p + LINE]
                for i in range(line.size):
                    line[i] += numbers[i] * weights[i]


@sums
def mix_gradients(lo, hi, gy, a, m, ga, gm, gb):
    """The gradients of `mix`, those of m and b in parts: for each chunk of ROWS rows and each block of LINE positions.

    `gy (N*O, P), a (N*O, R, P), m (R, P) -> ga (N*O, R, P), gm (chunks, R, P), gb (N*O, blocks)`; parts are shared out.
    """
    (rows, R, P), blocks = a.shape, gb.shape[1]
    for unit in range(lo, hi):
        chunk, block = unit // blocks, unit % blocks
        first, last = block * LINE, min(P, block * LINE + LINE)
        gm[chunk, :, first:last] = 0
        for row in range(chunk * ROWS, min(rows, chunk * ROWS + ROWS)):
            upstream, total = gy[row, first:last], gy.dtype.type(0)
            for i in range(upstream.size):
                total += upstream[i]
            gb[row, block] = total
            for r in range(R):
                weights, numbers, part, result = m[r, first:last], a[row, r, first:last], gm[chunk, r, first:last], ga[row, r, first:last]
                for i in range(upstream.size):
                    result[i] = upstream[i] * weights[i]
                    part[i] += upstream[i] * numbers[i]


@loop
def mix_weights(lo, hi, w, m, v):
    """The weights: `w (R, K), m (R, P) -> v (P, K)`; positions are shared out."""
    R, K = w.shape
    for k in range(0, K, SOME):
        for p in range(lo, hi):
            line = v[p, k : k + SOME]
            line[:] = 0
            for r in range(R):
                numbers, share = w[r, k : k + SOME], m[r, p]
                for i in range(line.size):
                    line[i] += share * numbers[i]


@sums
def mix_weights_gradients(lo, hi, gv, w, m, gw, gm):
    """The gradients of `mix_weights`, that of m in parts, one per line: `gv (P, K), w (R, K), m (R, P) -> gw (R, K), gm (lines, R, P)`.

    Lines are shared out.
    """
    (R, P), K = m.shape, w.shape[1]
    for unit in range(lo, hi):
        first, last = unit * SOME, min(K, unit * SOME + SOME)
        gw[:, first:last] = 0
        for p in range(P):
            upstream = gv[p, first:last]
            for r in range(R):
                numbers, part, share, total = w[r, first:last], gw[r, first:last], m[r, p], gv.dtype.type(0)
                for i in range(upstream.size):
                    total += upstream[i] * numbers[i]
                    part[i] += share * upstream[i]
                gm[unit, r, p] = total
