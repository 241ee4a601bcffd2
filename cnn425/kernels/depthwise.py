"""Convolutions in which every output channel sees few input channels, as loops over images whose channels are last in memory.

    output                y[n,i,j,o]     = b[o] + sum over e, u, v of  x[n, i*s + u*d - p, j*s + v*d - p, e, o] * w[u,v,e,o]
    gradient of x         gx[n,h,w,e,o]  = sum over the windows and cells (i, j, u, v) that show pixel (h, w)  of  gy[n,i,j,o] * w[u,v,e,o]
    gradient of w         gw[u,v,e,o]    = sum over n, i, j  of  gy[n,i,j,o] * x[n, i*s + u*d - p, j*s + v*d - p, e, o]

E is the number of input channels of a group, and `x[..., e, o]` the e-th channel that output o sees: for a depthwise convolution E = 1 and
this is the image itself. The innermost loop is over the outputs o, which are neighbours. Three dimensions, with D and T in front, are the
same; `grid` is that of `cnn425.kernels.columns`.
"""

from cnn425.kernels.threads import loop, step


@step
def pixel_of(position, cell, grid, side):
    """The pixel that a cell of the window at a position shows."""
    return position * grid[1, side] + cell * grid[3, side] - grid[2, side]


@step
def add_products(total, x, w, E):
    """total[o] += sum over e of x[e, o] * w[e, o]."""
    O = total.size
    for e in range(E):
        pixel, weight = x[e * O : (e + 1) * O], w[e * O : (e + 1) * O]
        for o in range(O):
            total[o] += pixel[o] * weight[o]


@loop
def convolve(lo, hi, x, w, b, grid, y):
    """The output: `x (N, D, H, W*E*O), w (T, U, V, E*O), b (O) -> y (N*A*I, J, O)`; lines of windows are shared out."""
    _, D, H, L = x.shape
    T, U, V, EO = w.shape
    _, J, O = y.shape
    A, I, W, E = grid[4, 0], grid[4, 1], L // EO, EO // O
    for unit in range(lo, hi):
        n, a, i = unit // (A * I), unit // I % A, unit % I
        for j in range(J):
            total, at = y[unit, j], pixel_of(j, 0, grid, 2)
            for o in range(O):
                total[o] = b[o]
            for t in range(T):
                d = pixel_of(a, t, grid, 0)
                for u in range(U):
                    h = pixel_of(i, u, grid, 1)
                    if d < 0 or d >= D or h < 0 or h >= H:
                        continue
                    line, v = x[n, d, h], 0
                    if E == 1 and grid[3, 2] == 1 and at >= 0 and at + V <= W:
                        while v + 3 <= V:  # three cells at once: the sums are read and written less often
                            first = (at + v) * O
                            x0, x1, x2 = line[first : first + O], line[first + O : first + 2 * O], line[first + 2 * O : first + 3 * O]
                            w0, w1, w2 = w[t, u, v], w[t, u, v + 1], w[t, u, v + 2]
                            for o in range(O):
                                total[o] += x0[o] * w0[o] + x1[o] * w1[o] + x2[o] * w2[o]
                            v += 3
                    while v < V:
                        pixel = at + v * grid[3, 2]
                        if 0 <= pixel < W:
                            add_products(total, line[pixel * EO : (pixel + 1) * EO], w[t, u, v], E)
                        v += 1


@loop
def input_gradient(lo, hi, gy, w, grid, gx):
    """The gradient of x: `gy (N, A, I, J*O), w (T, U, V, E*O) -> gx (N*D*H, W, E*O)`; lines of pixels are shared out."""
    _, A, I, L = gy.shape
    T, U, V, EO = w.shape
    _, W, _ = gx.shape
    J = grid[4, 2]
    O, D, H = L // J, grid[5, 0], grid[5, 1]
    for unit in range(lo, hi):
        n, d, h = unit // (D * H), unit // H % D, unit % H
        gx[unit] = 0
        for t in range(T):
            a = d + grid[2, 0] - t * grid[3, 0]
            for u in range(U):
                i = h + grid[2, 1] - u * grid[3, 1]
                if a < 0 or a % grid[1, 0] != 0 or a // grid[1, 0] >= A or i < 0 or i % grid[1, 1] != 0 or i // grid[1, 1] >= I:
                    continue
                line = gy[n, a // grid[1, 0], i // grid[1, 1]]
                for j in range(J):
                    g, at = line[j * O : (j + 1) * O], pixel_of(j, 0, grid, 2)
                    for v in range(V):
                        pixel = at + v * grid[3, 2]
                        if 0 <= pixel < W:
                            for e in range(0, EO, O):
                                total, weight = gx[unit, pixel, e : e + O], w[t, u, v, e : e + O]
                                for o in range(O):
                                    total[o] += g[o] * weight[o]


@loop
def weight_gradient(lo, hi, gy, x, grid, parts, gw):
    """The gradient of w, in `parts` sums over some lines of windows each: `gy (N*A*I, J, O), x (N, D, H, W*E*O) -> (parts, T, U, V, E*O)`."""
    lines, J, O = gy.shape
    _, D, H, L = x.shape
    _, T, U, V, EO = gw.shape
    A, I, W = grid[4, 0], grid[4, 1], L // EO
    for unit in range(lo, hi):
        gw[unit] = 0
        for window in range(unit * lines // parts, (unit + 1) * lines // parts):
            n, a, i = window // (A * I), window // I % A, window % I
            for t in range(T):
                d = pixel_of(a, t, grid, 0)
                for u in range(U):
                    h = pixel_of(i, u, grid, 1)
                    if d < 0 or d >= D or h < 0 or h >= H:
                        continue
                    for v in range(V):
                        j, last = 0, J
                        while j < J and pixel_of(j, v, grid, 2) < 0:
                            j += 1
                        while last > j and pixel_of(last - 1, v, grid, 2) >= W:
                            last -= 1
                        accumulate(gy[window], x[n, d, h], gw[unit, t, u, v], j, last, pixel_of(0, v, grid, 2), grid[1, 2], O, EO)


@step
def accumulate(gy, x, gw, j, last, at, stride, O, EO):
    """gw[e, o] += sum over positions j to last - 1 of gy[j, o] * x[at + j*stride, e, o], four positions at once."""
    for e in range(0, EO, O):
        total, k = gw[e : e + O], j
        while k + 4 <= last:
            first, hop = (at + k * stride) * EO + e, stride * EO
            g0, g1, g2, g3 = gy[k], gy[k + 1], gy[k + 2], gy[k + 3]
            x0, x1 = x[first : first + O], x[first + hop : first + hop + O]
            x2, x3 = x[first + 2 * hop : first + 2 * hop + O], x[first + 3 * hop : first + 3 * hop + O]
            for o in range(O):
                total[o] += (g0[o] * x0[o] + g1[o] * x1[o]) + (g2[o] * x2[o] + g3[o] * x3[o])
            k += 4
        while k < last:
            first, g = (at + k * stride) * EO + e, gy[k]
            pixel = x[first : first + O]
            for o in range(O):
                total[o] += g[o] * pixel[o]
            k += 1
