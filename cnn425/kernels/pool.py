"""Pools as loops: the cells of a window are compared, or added, one after the other, for many images or channels at a time.

Loops see an image as `(D, H, W*K)`, where K contiguous numbers belong to different images: the compiler puts them in one vector register.
With channels last, K is the number of channels. Contiguous images come as `(M, D, H, W)`; IMAGES of them are interleaved, line by line,
into the same form. With few images K is 1, and windows that start one pixel apart share a register instead.
Images have D = 1, signals D = H = 1.

The windows along a side are a table `(4, positions)`: the first pixel inside the image, the number of cells inside the image, the number of
cells that an average counts, the pixels from cell to cell. So ordinary, ceil_mode and adaptive windows need the same code.
"""

import contextlib

import numpy as np

from cnn425.kernels.box import REGISTER, keep_rolled, spread, transpose
from cnn425.kernels.machine_code import cases
from cnn425.kernels.threads import loop, machine_step, step

IMAGES = 32  # interleaved at a time
RESULTS = 1 << 8  # outputs of interleaved images that are separated at a time
WIDTHS = (64, 32, 16, 4, 1)  # windows that are reduced at once


@step
def span(table):
    """How many lines to keep at a time: those a window spans, and up to a step before them, where a window was cut at the edge."""
    longest = 1
    for i in range(table.shape[1]):
        longest = max(longest, table[1, i] * table[3, i])
    return longest


@step
def follow(x, shape, first, planes, rows, a, i, ready, image):
    """Interleave the lines of windows (a, i) that are not in `image` yet, with indices modulo its size. Returns the next line.

    Lines before `ready` are already there, or no longer needed. `shape` is that of x, which is given as a row of numbers.
    """
    (M, D, H, W), ready = shape, max(ready, rows[0, i] - rows[3, i] + 1)
    while ready <= rows[0, i] + (rows[1, i] - 1) * rows[3, i]:
        for t in range(planes[1, a]):
            d = planes[0, a] + t * planes[3, a]
            line = image[d % image.shape[0], ready % image.shape[1]]
            transpose(x, (first * D + d) * H * W + ready * W, D * H * W, line, 0, IMAGES, W, min(IMAGES, M - first))
        ready += 1
    return ready


# ---- One window --------------------------------------------------------------------------------------------------------------------------


def _reduce(builder, a):
    """`reduce` in machine code: intermediate results stay in vector registers."""
    from llvmlite import ir
    from numba.core import cgutils

    word, short = ir.IntType(64), ir.IntType(32)

    def at(array, place, vector):
        return builder.bitcast(builder.gep(array, [place]), vector.as_pointer())

    def each_cell(of_row, of_cell, vector):
        with cgutils.for_range(builder, a.R) as row:
            start, above = (builder.load(builder.gep(array, [row.index])) for array in (a.line, a.top))
            with of_row(), cgutils.for_range(builder, a.V) as column:
                here = builder.add(builder.add(above, a.w), builder.mul(column.index, a.step_))
                place = builder.add(builder.add(start, a.k), builder.load(builder.gep(a.cell, [column.index])))
                of_cell(builder.load(at(a.x, place, vector), align=a.size), builder.trunc(here, short))
                end = builder.block
            keep_rolled(builder, end)  # windows are small

    for adds in cases(builder, a.adds, (0, 1)):
        for L in cases(builder, a.L, WIDTHS):
            numbers, pixels = ir.VectorType(a.number, L), ir.VectorType(short, L)
            if adds:
                found = builder.fdiv(_total(builder, numbers, each_cell), spread(builder, a.cells, numbers))
            else:
                some = builder.icmp_signed(">", builder.mul(a.R, a.V), word(0))
                first = builder.select(some, builder.add(builder.load(a.top), a.w), word(-1))
                found, pixel = _largest(builder, numbers, each_cell, spread(builder, builder.trunc(first, short), pixels))
                builder.store(pixel, at(a.where, a.to, pixels), align=4)
            builder.store(found, at(a.y, a.to, numbers), align=a.size)


def _total(builder, numbers, each_cell):
    """The instructions that add up the cells, row by row: their sum."""
    from numba.core import cgutils

    zero = numbers([0.0] * numbers.count)
    total, part = cgutils.alloca_once(builder, numbers), cgutils.alloca_once(builder, numbers)

    def add(to, number):
        builder.store(builder.fadd(builder.load(to), number), to)

    @contextlib.contextmanager
    def of_row():
        builder.store(zero, part)
        yield
        add(total, builder.load(part))

    builder.store(zero, total)
    each_cell(of_row, lambda number, _: add(part, number), numbers)
    return builder.load(total)


def _largest(builder, numbers, each_cell, first):
    """The instructions that compare the cells: the largest numbers and their pixels, or `first` where all are minus infinity."""
    from numba.core import cgutils

    best, pixel = cgutils.alloca_once(builder, numbers), cgutils.alloca_once(builder, first.type)

    def of_cell(number, here):
        held = builder.load(best)
        wins = builder.or_(builder.fcmp_ordered(">", number, held), builder.fcmp_unordered("uno", number, number))
        builder.store(builder.select(wins, number, held), best)
        builder.store(builder.select(wins, spread(builder, here, first.type), builder.load(pixel)), pixel)

    builder.store(numbers([float("-inf")] * numbers.count), best)
    builder.store(first, pixel)
    each_cell(contextlib.nullcontext, of_cell, numbers)
    return builder.load(best), builder.load(pixel)


@machine_step(_reduce)
def reduce(x, k, line, top, R, cell, w, step_, V, cells, y, where, to, L, adds):
    """y[to + l] = largest of x[k + line[r] + cell[v] + l] over rows r < R and columns v < V, or with `adds` sum / cells, for l < L.

    L is one of WIDTHS. Rows are summed up one by one. `where` has the pixel of the largest number, `top[r] + w + v*step_`.
    """
    best, pixel, total = np.full(L, -np.inf, x.dtype), np.full(L, top[0] + w if R * V else -1), np.zeros(L, x.dtype)
    for r in range(R):
        part = np.zeros(L, x.dtype)
        for v in range(V):
            numbers = x[k + line[r] + cell[v] :][:L]
            wins = (numbers > best) | (numbers != numbers)
            best, pixel, part = np.where(wins, numbers, best), np.where(wins, top[r] + w + v * step_, pixel), part + numbers
        total += part
    y[to : to + L] = total / cells if adds else best
    if not adds:
        where[to : to + L] = pixel


# ---- All windows -------------------------------------------------------------------------------------------------------------------------


@step
def lines_of(shape, H, W, planes, rows, a, i, line, top):
    """Fill `line` and `top`: where the rows of windows (a, i) begin in an image of this shape, and their first pixels. Returns how many."""
    R, (depth, height, L) = 0, shape
    for t in range(planes[1, a]):
        for u in range(rows[1, i]):
            d, h = planes[0, a] + t * planes[3, a], rows[0, i] + u * rows[3, i]
            line[R], top[R] = (d % depth * height + h % height) * L, (d * H + h) * W
            R += 1
    return R


@step
def abreast(columns, j):
    """How many windows from j on, up to 64, start one pixel apart and have equally many cells."""
    n, stop = 1, min(64, columns.shape[1] - j)
    while n < stop and columns[0, j + n] == columns[0, j] + n and columns[1, j + n] == columns[1, j] and columns[2, j + n] == columns[2, j]:
        n += 1
    return n


@step
def width_of(many):
    """The largest of WIDTHS that is not above `many`."""
    some = 64
    while some > many:
        some //= 2 if some > 16 else 4
    return some


@step
def row_of_windows(x, base, line, top, R, columns, cell, K, adds, divisor, counted, y, where, to):
    """The windows of all columns j, with the rows found by `lines_of`, from x[base] on: `y, where [to + j*K + k]`.

    `cell` holds the offsets of a window's columns. Several k are computed at once, or several j if K is 1.
    """
    j, some = 0, width_of(K)
    while j < columns.shape[1]:
        w, V, step_, some = columns[0, j], columns[1, j], columns[3, j], width_of(abreast(columns, j)) if K == 1 else some
        cells = x.dtype.type(divisor if divisor != 0 else counted * columns[2, j])
        first = 0
        while first < K:  # a `range` would divide
            k = min(first, K - some) if K > 1 else 0  # the last numbers are computed twice
            start, at = base + w * K + k, to + j * K + k
            reduce(x, start, line, top, R, cell, w, step_, V, cells, y, where, at, some, adds)
            first += some
        if K == 1 and not adds and R * V > 0:
            for n in range(some):
                where[to + j + n] += n  # `reduce` gives pixels relative to the first of them
        j += some if K == 1 else 1


@loop
def pool_rows(lo, hi, x, K, planes, rows, columns, adds, divisor, y, where):
    """y[m,a,i,j,k] = the largest of x[m, d, h, w, k] over the cells of window (a, i, j); `where`: its pixel `(d*H + h)*W + w`.

    `x (M, D, H, W*K) -> y, where (M*A*I, J*K)`; the rows of windows are shared out. Of equal numbers the first pixel wins, of NaNs the
    last; a window without cells is minus infinity and has pixel -1. With `adds`, `y` is the sum of the cells divided by `divisor`, or, if
    that is 0, by the number of cells that count; `where` is empty. The adjoint is the same loop: the gradient of a pixel is a sum over the
    windows that show it.
    """
    (_, D, H, L), A, I, J = x.shape, planes.shape[1], rows.shape[1], columns.shape[1]
    numbers, results, pixels, most = x.reshape(x.size), y.reshape(y.size), where.reshape(where.size), planes[1].max() * rows[1].max() + 1
    line, top, cell = np.zeros(most, np.int64), np.zeros(most, np.int64), np.arange(columns[1].max()) * (columns[3].max() * K)
    for unit in range(lo, hi):
        base, a, i = unit // (A * I) * D * H * L, unit // I % A, unit % I
        R, counted = lines_of((D, H, L), H, L // K, planes, rows, a, i, line, top), planes[2, a] * rows[2, i]
        row_of_windows(numbers, base, line, top, R, columns, cell, K, adds, divisor, counted, results, pixels, unit * J * K)


@loop
def pool_images(lo, hi, x, planes, rows, columns, adds, divisor, y, where):
    """The same for contiguous images, `x (M, D, H, W) -> y, where (M, A*I*J)`; blocks of IMAGES images are shared out."""
    (M, _, H, W), I, J, most = x.shape, rows.shape[1], columns.shape[1], planes[1].max() * rows[1].max() + 1
    given, results, places, Q = x.reshape(x.size), y.reshape(y.size), where.reshape(where.size), y.shape[1]
    image = np.zeros((span(planes), span(rows), (W + REGISTER) * IMAGES), x.dtype)
    line, top, numbers = np.zeros(most, np.int64), np.zeros(most, np.int64), np.empty((RESULTS + J) * IMAGES, x.dtype)
    lines, pixels = image.reshape(image.size), np.empty(numbers.size, np.int32)
    cell = np.arange(columns[1].max()) * (columns[3].max() * IMAGES)
    for unit in range(lo, hi):
        done, count = 0, 0
        for a in range(planes.shape[1]):
            ready = 0
            for i in range(I):
                ready = follow(given, x.shape, unit * IMAGES, planes, rows, a, i, ready, image)
                R, counted = lines_of(image.shape, H, W, planes, rows, a, i, line, top), planes[2, a] * rows[2, i]
                at = count * IMAGES
                row_of_windows(lines, 0, line, top, R, columns, cell, IMAGES, adds, divisor, counted, numbers, pixels, at)
                count += J
                if count >= RESULTS or (i == I - 1 and a == planes.shape[1] - 1):
                    at, images = unit * IMAGES * Q + done, min(IMAGES, M - unit * IMAGES)
                    transpose(numbers, 0, IMAGES, results, at, Q, images, count)
                    if not adds:
                        transpose(pixels, 0, IMAGES, places, at, Q, images, count)
                    done, count = done + count, 0


# ---- The gradient of a max pool ----------------------------------------------------------------------------------------------------------


@loop
def route(lo, hi, gy, where, gx):
    """gx[m,p,k] = the sum of gy[m,q,k] over the windows q that pixel p won. `gy, where (M, Q*K) -> gx (M, P, K)`; images are shared out."""
    (_, P, K), numbers = gx.shape, gx.reshape(gx.size)
    for m in range(lo, hi):
        g, winner, image = gy[m], where[m], numbers[m * P * K : (m + 1) * P * K]
        image[:] = 0
        if K == 1:
            for q in range(g.size):
                if winner[q] >= 0:
                    image[winner[q]] += g[q]
        for q in range(0, g.size if K > 1 else 0, K):
            upstream, won = g[q : q + K], winner[q : q + K]
            for k in range(K):
                if won[k] >= 0:
                    image[won[k] * K + k] += upstream[k]


@loop
def pick(lo, hi, t, where, y):
    """y[m,q,k] = t[m, where[m,q,k], k], and 0 where there is no winner. `t (M, P, K) -> y (M, Q, K)`; images are shared out."""
    _, Q, K = y.shape
    for m in range(lo, hi):
        image, winner, numbers = t[m], where[m], y[m]
        for q in range(Q):
            for k in range(K):
                numbers[q, k] = image[winner[q, k], k] if winner[q, k] >= 0 else 0
