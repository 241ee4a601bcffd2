"""Windows as columns, and back: what makes a convolution one matrix product (im2col), and its adjoint (col2im), in both memory layouts.

    interleaved   columns[(n,a,i,j), (t,u,v,c)] = x[n, a*s + t*d - p, i*s + u*d - p, j*s + v*d - p, c]       channels last
    contiguous    columns[(c,t,u,v), (n,a,i,j)] = x[n, c, a*s + t*d - p, i*s + u*d - p, j*s + v*d - p]

and zero outside the image. `grid` holds the geometry, one row each for the numbers of cells, the strides s, the low paddings p, the
dilations d and the positions, in three columns (a signal or an image has one plane, or row, in front). A block of columns covers images
from `image` on and in each the lines of windows from `first` on; a line is all positions j of one (a, i). Of the channels, those of one
group take part, from `channel` on.
"""

from cnn425.kernels.threads import loop, step


@step
def inside(v, grid, side, size):
    """The positions j for which cell v is in the image: from (start) to (stop), and the pixel of position 0."""
    stride, at = grid[1, side], v * grid[3, side] - grid[2, side]
    start = 0 if at >= 0 else (-at + stride - 1) // stride
    stop = (size - 1 - at) // stride + 1 if at < size else 0
    return min(start, grid[4, side]), max(min(stop, grid[4, side]), min(start, grid[4, side])), at


@loop
def gather_interleaved(lo, hi, x, grid, image, first, channel, columns):
    """Columns of the images `x (N, D, H, W, all C) -> (images, lines, J, T, U, V*C)`; lines are shared out."""
    _, D, H, W, all_ = x.shape
    _, lines, J, T, U, L = columns.shape
    I, V = grid[4, 1], grid[0, 2]
    C = L // V
    for unit in range(lo, hi):
        n, line = unit // lines, unit % lines
        a, i = (first + line) // I, (first + line) % I
        for j in range(J):
            at = j * grid[1, 2] - grid[2, 2]
            whole = grid[3, 2] == 1 and at >= 0 and at + V <= W and C == all_
            for t in range(T):
                d = a * grid[1, 0] + t * grid[3, 0] - grid[2, 0]
                for u in range(U):
                    h = i * grid[1, 1] + u * grid[3, 1] - grid[2, 1]
                    target = columns[n, line, j, t, u]
                    if d < 0 or d >= D or h < 0 or h >= H:
                        target[:] = 0
                    elif whole:
                        source = x[image + n, d, h].reshape(W * C)[at * C : at * C + L]
                        for k in range(L):
                            target[k] = source[k]
                    else:
                        for v in range(V):
                            w, part = at + v * grid[3, 2], target[v * C : (v + 1) * C]
                            if 0 <= w < W:
                                pixel = x[image + n, d, h, w, channel : channel + C]
                                for c in range(C):
                                    part[c] = pixel[c]
                            else:
                                part[:] = 0


@loop
def scatter_interleaved(lo, hi, columns, grid, image, first, channel, gx):
    """The adjoint: columns of a block added to their pixels, `(images, lines, J, T, U, V*C) -> gx (N, D, H, W, all C)`; lines of pixels."""
    _, D, H, W, _ = gx.shape
    _, lines, J, T, U, L = columns.shape
    I, V = grid[4, 1], grid[0, 2]
    C = L // V
    for unit in range(lo, hi):
        n, d, h = unit // (D * H), unit // H % D, unit % H
        line_of_pixels = gx[image + n, d, h]
        if first == 0:
            for w in range(W):
                line_of_pixels[w, channel : channel + C] = 0
        for t in range(T):
            a = d + grid[2, 0] - t * grid[3, 0]
            if a < 0 or a % grid[1, 0] != 0 or a // grid[1, 0] >= grid[4, 0]:
                continue
            for u in range(U):
                i = h + grid[2, 1] - u * grid[3, 1]
                line = a // grid[1, 0] * I + i // grid[1, 1] - first
                if i < 0 or i % grid[1, 1] != 0 or i // grid[1, 1] >= I or line < 0 or line >= lines:
                    continue
                for j in range(J):
                    source, at = columns[n, line, j, t, u], j * grid[1, 2] - grid[2, 2]
                    for v in range(V):
                        w = at + v * grid[3, 2]
                        if 0 <= w < W:
                            pixel, part = line_of_pixels[w, channel : channel + C], source[v * C : (v + 1) * C]
                            for c in range(C):
                                pixel[c] += part[c]


@loop
def gather(lo, hi, x, grid, image, first, channel, columns):
    """Columns of contiguous images, `x (N, all C, D, H, W) -> (C*T*U*V, images, lines, J)`; rows of the matrix are shared out."""
    _, _, D, H, W = x.shape
    _, N, lines, J = columns.shape
    T, U, V, I = grid[0, 0], grid[0, 1], grid[0, 2], grid[4, 1]
    for unit in range(lo, hi):
        c, t, u, v = unit // (T * U * V), unit // (U * V) % T, unit // V % U, unit % V
        start, stop, at = inside(v, grid, 2, W)
        for n in range(N):
            for line in range(lines):
                a, i, target = (first + line) // I, (first + line) % I, columns[unit, n, line]
                d, h = a * grid[1, 0] + t * grid[3, 0] - grid[2, 0], i * grid[1, 1] + u * grid[3, 1] - grid[2, 1]
                if d < 0 or d >= D or h < 0 or h >= H:
                    target[:] = 0
                    continue
                source = x[image + n, channel + c, d, h]
                target[:start] = 0
                target[stop:] = 0
                run, w = target[start:stop], source[max(start * grid[1, 2] + at, 0) :]
                if grid[1, 2] == 1:
                    for j in range(run.size):
                        run[j] = w[j]
                elif grid[1, 2] == 2:
                    for j in range(run.size):
                        run[j] = w[2 * j]
                else:
                    for j in range(run.size):
                        run[j] = w[j * grid[1, 2]]


@loop
def scatter(lo, hi, columns, grid, image, first, channel, gx):
    """The adjoint: columns of a block added to their pixels, `(C*T*U*V, images, lines, J) -> gx (N, all C, D, H, W)`; planes."""
    _, _, D, H, W = gx.shape
    K, _, lines, J = columns.shape
    T, U, V, I = grid[0, 0], grid[0, 1], grid[0, 2], grid[4, 1]
    C = K // (T * U * V)
    for unit in range(lo, hi):
        n, c = unit // C, unit % C
        plane = gx[image + n, channel + c]
        if first == 0:
            plane[:] = 0
        for t in range(T):
            for u in range(U):
                for v in range(V):
                    start, stop, at = inside(v, grid, 2, W)
                    row = columns[((c * T + t) * U + u) * V + v, n]
                    for line in range(lines):
                        a, i = (first + line) // I, (first + line) % I
                        d, h = a * grid[1, 0] + t * grid[3, 0] - grid[2, 0], i * grid[1, 1] + u * grid[3, 1] - grid[2, 1]
                        if d < 0 or d >= D or h < 0 or h >= H:
                            continue
                        run, w = row[line, start:stop], plane[d, h, max(start * grid[1, 2] + at, 0) :]
                        if grid[1, 2] == 1:
                            for j in range(run.size):
                                w[j] += run[j]
                        else:
                            for j in range(run.size):
                                w[j * grid[1, 2]] += run[j]
