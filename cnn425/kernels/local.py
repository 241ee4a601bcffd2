"""Local layers as loops: every position has a window of pixels and weights of its own, and each weight is read, or written, once.

    output                  y[n,o,p]          = b[o,p] + sum over c, t, u, v  of  x[n,c, window p, cell t,u,v] * w[p,o,c,t,u,v]
    gradient of x           gx[n,c,d,h,w]     = sum over o and the cells (p, t, u, v) that show the pixel  of  gy[n,o,p] * w[p,o,c,t,u,v]
    gradient of w           gw[p,o,c,t,u,v]   = sum over n  of  gy[n,o,p] * x[n,c, window p, cell t,u,v]

for positions p = (a, i, j) in reading order and images `(N, C, D, H, W)`, all contiguous. `grid` holds the geometry, one row each for the
numbers of cells, the strides s, the low paddings p, the dilations d, the positions and the pixels, in three columns. The channels of group
g are those from g*C/G on, so C below counts the channels of a group. `gather` and `scatter` are for many images and channels, where one
matrix product per position does the arithmetic.
"""

from cnn425.kernels.threads import loop, step, sums


@step
def run(p, u, v, grid, D, H, W, T):
    """The cells of row (t, u) of window p that are inside the image: pixel (d, h, w) of the first, its cell v, and their number."""
    t, I, J = u // grid[0, 1], grid[4, 1], grid[4, 2]
    d = p // (I * J) * grid[1, 0] + t * grid[3, 0] - grid[2, 0]
    h = p // J % I * grid[1, 1] + u % grid[0, 1] * grid[3, 1] - grid[2, 1]
    first, step_ = p % J * grid[1, 2] - grid[2, 2], grid[3, 2]
    start = 0 if first >= 0 else (-first + step_ - 1) // step_
    stop = min(v, (W - 1 - first) // step_ + 1) if first < W else 0
    cells = stop - start if 0 <= d < D and 0 <= h < H and stop > start else 0
    return d, h, first + start * step_, start, cells


@sums
def output(lo, hi, x, w, b, groups, grid, y):
    """The output: `x (N, G*C, D, H, W), w (Q, G*O, C, T*U, V), b (G*O, Q) -> y (N, G*O, P)`; positions are shared out."""
    N, _, D, H, W = x.shape
    Q, GO, C, TU, V = w.shape
    for p in range(lo, hi):
        for n in range(N):
            for o in range(GO):
                total, channel = b[o, p % Q], o // (GO // groups) * C
                for u in range(TU):
                    d, h, first, start, cells = run(p, u, V, grid, D, H, W, TU)
                    for c in range(C if cells else 0):
                        line, weight, part = x[n, channel + c, d, h], w[p % Q, o, c, u], total * 0
                        if cells == V and grid[3, 2] == 1:
                            pixels = line[first : first + V]
                            for v in range(V):
                                part += pixels[v] * weight[v]
                        else:
                            for v in range(cells):
                                part += line[first + v * grid[3, 2]] * weight[start + v]
                        total += part
                y[n, o, p] = total


@loop
def input_gradient(lo, hi, gy, w, groups, grid, gx):
    """The gradient of x: `gy (N, G*O, P), w (Q, G*O, C, T*U, V) -> gx (N, G*C, D, H, W)`; lines of pixels are shared out."""
    N, GO, _ = gy.shape
    Q, _, C, TU, V = w.shape
    _, GC, D, H, W = gx.shape
    A, I, J, U, O = grid[4, 0], grid[4, 1], grid[4, 2], grid[0, 1], GO // groups
    for unit in range(lo, hi):
        n, channel, d, h = unit // (GC * D * H), unit // (D * H) % GC, unit // H % D, unit % H
        line = gx[n, channel, d, h]
        line[:] = 0
        for row in range(TU):
            a, i = d + grid[2, 0] - row // U * grid[3, 0], h + grid[2, 1] - row % U * grid[3, 1]
            if a < 0 or a % grid[1, 0] != 0 or a // grid[1, 0] >= A or i < 0 or i % grid[1, 1] != 0 or i // grid[1, 1] >= I:
                continue
            for j in range(J):
                p = (a // grid[1, 0] * I + i // grid[1, 1]) * J + j
                _, _, first, start, cells = run(p, row, V, grid, D, H, W, TU)
                for o in range(channel // C * O, channel // C * O + O):
                    g, weight = gy[n, o, p], w[p % Q, o, channel % C, row]
                    if cells == V and grid[3, 2] == 1:
                        pixels = line[first : first + V]
                        for v in range(V):
                            pixels[v] += g * weight[v]
                    else:
                        for v in range(cells):
                            line[first + v * grid[3, 2]] += g * weight[start + v]


@loop
def weight_gradient(lo, hi, gy, x, groups, grid, gw):
    """The gradient of w: `gy (N, G*O, P), x (N, G*C, D, H, W) -> gw (Q, G*O, C, T*U, V)`; sets of weights are shared out."""
    N, _, D, H, W = x.shape
    Q, GO, C, TU, V = gw.shape
    for q in range(lo, hi):
        gw[q] = 0
        for p in range(q, gy.shape[2], Q):
            for o in range(GO):
                channel = o // (GO // groups) * C
                for u in range(TU):
                    d, h, first, start, cells = run(p, u, V, grid, D, H, W, TU)
                    for c in range(C if cells > 0 else 0):
                        weight = gw[q, o, c, u]
                        for n in range(N):
                            g, line = gy[n, o, p], x[n, channel + c, d, h]
                            if cells == V and grid[3, 2] == 1:
                                pixels = line[first : first + V]
                                for v in range(V):
                                    weight[v] += g * pixels[v]
                            else:
                                for v in range(cells):
                                    weight[start + v] += g * line[first + v * grid[3, 2]]


@loop
def gather(lo, hi, x, position, grid, windows):
    """windows[p, g, n, (c,t,u,v)] = the pixel that the cell shows, zero outside: `x (N, G*C, D, H, W) -> (P, G, N, C, T*U, V)`, P from
    `position` on; positions are shared out."""
    N, _, D, H, W = x.shape
    _, G, _, C, TU, V = windows.shape
    for unit in range(lo, hi):
        for u in range(TU):
            d, h, first, start, cells = run(position + unit, u, V, grid, D, H, W, TU)
            for g in range(G):
                for n in range(N):
                    for c in range(C):
                        target = windows[unit, g, n, c, u]
                        if cells < V:
                            target[:] = 0
                        if cells == 0:
                            continue
                        line = x[n, g * C + c, d, h]
                        if grid[3, 2] == 1:
                            pixels, part = line[first : first + cells], target[start : start + cells]
                            for v in range(cells):
                                part[v] = pixels[v]
                        else:
                            for v in range(cells):
                                target[start + v] = line[first + v * grid[3, 2]]


@loop
def scatter(lo, hi, windows, position, grid, gx):
    """The adjoint of `gather`: windows added to their pixels, `(P, G, N, C, T*U, V) -> gx (N, G*C, D, H, W)`; planes are shared out."""
    N, GC, D, H, W = gx.shape
    P, _, _, C, TU, V = windows.shape
    for unit in range(lo, hi):
        n, channel = unit // GC, unit % GC
        for k in range(P):
            for u in range(TU):
                d, h, first, start, cells = run(position + k, u, V, grid, D, H, W, TU)
                if cells == 0:
                    continue
                line, window = gx[n, channel, d, h], windows[k, channel // C, n, channel % C, u]
                for v in range(cells):
                    line[first + v * grid[3, 2]] += window[start + v]
