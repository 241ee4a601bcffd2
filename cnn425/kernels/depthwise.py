"""Depthwise convolutions, in which every channel has a kernel of its own, as loops over images whose channels are last in memory.

    output                y[n,i,j,c]     = b[c] + sum over u, v  of  x[n, i*s + u*d - p, j*s + v*d - p, c] * w[u,v,c]
    gradient of x         gx[n,h,w,c]    = sum over the windows and cells (i, j, u, v) that show pixel (h, w)  of  gy[n,i,j,c] * w[u,v,c]
    gradient of w         gw[u,v,c]      = sum over n, i, j  of  gy[n,i,j,c] * x[n, i*s + u*d - p, j*s + v*d - p, c]

The innermost loop is over the channels, which are neighbours. Three dimensions, with D and T in front, are the same. `grid` holds the
geometry, one row each for the numbers of cells, the strides s, the low paddings p, the dilations d, the positions and the pixels, in three
columns; a signal or an image has one plane, or row, in front.
"""

from cnn425.kernels.threads import loop, step


@step
def pixel_of(position, cell, grid, side):
    """The pixel that a cell of the window at a position shows."""
    return position * grid[1, side] + cell * grid[3, side] - grid[2, side]


@loop
def convolve(lo, hi, x, w, b, grid, y):
    """The output: `x (N, D, H, W*C), w (T, U, V, C), b (C) -> y (N*A*I, J, C)`; lines of windows are shared out."""
    _, D, H, L = x.shape
    T, U, V, C = w.shape
    A, I, W = grid[4, 0], grid[4, 1], L // C
    for unit in range(lo, hi):
        n, a, i = unit // (A * I), unit // I % A, unit % I
        for j in range(y.shape[1]):
            total, at = y[unit, j], pixel_of(j, 0, grid, 2)
            for c in range(C):
                total[c] = b[c]
            for t in range(T):
                d = pixel_of(a, t, grid, 0)
                for u in range(U):
                    h = pixel_of(i, u, grid, 1)
                    if d < 0 or d >= D or h < 0 or h >= H:
                        continue
                    line, weight, v = x[n, d, h], w[t, u], 0
                    while v < V:
                        pixel = at + v * grid[3, 2]
                        if v + 3 <= V and pixel >= 0 and pixel + 2 * grid[3, 2] < W:  # three cells: the sum is written less often
                            first, hop = pixel * C, grid[3, 2] * C
                            x0, x1, x2 = line[first : first + C], line[first + hop : first + hop + C], line[first + 2 * hop :]
                            w0, w1, w2 = weight[v], weight[v + 1], weight[v + 2]
                            for c in range(C):
                                total[c] += x0[c] * w0[c] + x1[c] * w1[c] + x2[c] * w2[c]
                            v += 3
                        else:
                            if 0 <= pixel < W:
                                x0, w0 = line[pixel * C : (pixel + 1) * C], weight[v]
                                for c in range(C):
                                    total[c] += x0[c] * w0[c]
                            v += 1


@loop
def input_gradient(lo, hi, gy, w, grid, gx):
    """The gradient of x: `gy (N, A, I, J*C), w (T, U, V, C) -> gx (N*D*H, W, C)`; lines of pixels are shared out."""
    _, A, I, L = gy.shape
    T, U, V, C = w.shape
    J, D, H = L // C, grid[5, 0], grid[5, 1]
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
                for w_ in range(gx.shape[1]):
                    total = gx[unit, w_]
                    for v in range(V):
                        j = w_ + grid[2, 2] - v * grid[3, 2]
                        if j >= 0 and j % grid[1, 2] == 0 and j // grid[1, 2] < J:
                            g, weight = line[j // grid[1, 2] * C : (j // grid[1, 2] + 1) * C], w[t, u, v]
                            for c in range(C):
                                total[c] += g[c] * weight[c]


@loop
def weight_gradient(lo, hi, gy, x, grid, parts, gw):
    """The gradient of w, in `parts` sums over some lines of windows each: `gy (N*A*I, J, C), x (N, D, H, W*C) -> (parts, T, U, V, C)`."""
    lines, J, C = gy.shape
    _, D, H, L = x.shape
    _, T, U, V, _ = gw.shape
    A, I, W = grid[4, 0], grid[4, 1], L // C
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
                        accumulate(gy[window], x[n, d, h], gw[unit, t, u, v], j, last, pixel_of(0, v, grid, 2), grid[1, 2])


@step
def accumulate(gy, x, gw, j, last, at, stride):
    """gw[c] += sum over positions j to last - 1 of gy[j, c] * x[at + j*stride, c], four positions at once."""
    C = gw.size
    hop = stride * C
    while j + 4 <= last:
        first = (at + j * stride) * C
        g0, g1, g2, g3 = gy[j], gy[j + 1], gy[j + 2], gy[j + 3]
        x0, x1 = x[first : first + C], x[first + hop : first + hop + C]
        x2, x3 = x[first + 2 * hop : first + 2 * hop + C], x[first + 3 * hop : first + 3 * hop + C]
        for c in range(C):
            gw[c] += (g0[c] * x0[c] + g1[c] * x1[c]) + (g2[c] * x2[c] + g3[c] * x3[c])
        j += 4
    while j < last:
        pixel, g = x[(at + j * stride) * C : (at + j * stride + 1) * C], gy[j]
        for c in range(C):
            gw[c] += g[c] * pixel[c]
        j += 1
