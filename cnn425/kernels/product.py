"""A convolution as one matrix product whose left factor is never written down: its numbers are gathered from the image by offsets.

    output                  y[p, o]   = b[o] + sum over k  of  x[row[p] + cell[k]] * w[k, o]       p a position, k = (t, u, v, c) a cell
    gradient of the weight  gw[k, o]  = sum over p         of  x[cell[k] + row[p]] * gy[p, o]      the same with p and k exchanged
    small groups            y[p, o]   = b[o] + sum over k, i of x[row[p] + cell[k] + o//G*G + i] * w[k, i, o]     k = (t, u, v), i < G

Positions come in boxes. The pixels that a box of positions sees are copied into a thread's own memory, channels last and zero-padded
(`cnn425.kernels.box`). There, cell k of window p shows the number at `row[p] + cell[k]`: the start of the window plus the offset of the
cell. The gradient of the image is the first line again, over the output gradient. Outputs come in panels of V vector registers, and
are computed by tiles of some rows p and one panel (`cnn425.kernels.tile`). Groups of G = 1, 2, 4 or 8 inputs and as many outputs share a
register: a depthwise convolution has G = 1.

With stride s the gradient of the image is several products: every s-th output is made of the same cells. `phases (5, F)` holds for each the
first output along d, h, w, its first cell, and the one after its last. `sides (7, 3)` holds the geometry along d, h, w, one row each: the
positions; the outputs; the outputs from one position to the next (hop); the pixel where the first window starts (origin); the pixels from
one window to the next (step); the length of a box in positions; its pixels. `source` and `target (2, 5)` hold the sizes of the two images
along n, d, h, w, c, and their strides. `panels (3, Q)` holds for each panel the first output, the number of outputs, and the first channel
that they see.
"""

import numpy as np

from cnn425.kernels.box import REGISTER, fill, load, neighbours, padded, rows_of_grid, store, transpose_block
from cnn425.kernels.threads import loop, step
from cnn425.kernels.tile import rows_of, short, tile

BLOCK = 64  # rows of a weight that stay in the cache while it is transposed


@step
def rows_of_sides(sides):
    """The rows of `sides`: positions, outputs, hop, origin, step, length of a box, pixels."""
    return sides[0], sides[1], sides[2], sides[3], sides[4], sides[5], sides[6]


@step
def numbers_of_box(sides, images, C, lanes):
    """The size of a box in numbers, with room for the vector registers that are read past its end."""
    _, _, _, _, _, _, pixels = rows_of_sides(sides)
    return images * pixels[0] * pixels[1] * pixels[2] * C + 4 * lanes


@step
def corner(box, sides, images):
    """The first image and position of a box: n, a, i, j."""
    positions, _, _, _, _, long, _ = rows_of_sides(sides)
    A, across, down = positions[0], (positions[2] + long[2] - 1) // long[2], (positions[1] + long[1] - 1) // long[1]
    return box // (across * down * A) * images, box // (across * down) % A, box // across % down * long[1], box % across * long[2]


@step
def outputs_of(box, source, sides, images):
    """How many images, and outputs along d, h, w, a box has: it is cut where the image ends."""
    n, a, i, j = corner(box, sides, images)
    _, outputs, hop, _, _, long, _ = rows_of_sides(sides)
    depth, lines = min(hop[0], outputs[0] - a * hop[0]), min(long[1] * hop[1], outputs[1] - i * hop[1])
    return min(images, source[0, 0] - n), depth, lines, min(long[2] * hop[2], outputs[2] - j * hop[2])


@step
def load_box(box, x, source, sides, images, direct, target, buffer):
    """Copy the pixels of a box into `buffer`. Returns where the box starts there, and where its outputs start in the target.

    A box has positions of one plane, some lines and some columns; it has several images only if it shows them whole. With `direct`
    nothing is copied: the image is read in place.
    """
    n, a, i, j = corner(box, sides, images)
    _, _, hop, origin, step_, _, pixels = rows_of_sides(sides)
    d, h, w = origin[0] + a * step_[0], origin[1] + i * step_[1], origin[2] + j * step_[2]
    first = a * hop[0] * target[1, 1] + i * hop[1] * target[1, 2] + j * hop[2] * target[1, 3]
    for m in range(0 if direct else min(images, source[0, 0] - n)):
        fill(x, source, n + m, d, h, w, pixels, buffer, m * pixels[0] * pixels[1] * pixels[2] * source[0, 4])
    return n * source[1, 0] + d * source[1, 1] + h * source[1, 2] + w * source[1, 3] if direct else 0, n * target[1, 0] + first


@step
def outputs_in(shape, target, place):
    """Fill `place`: where the outputs of a box are in the target, relative to the first. Returns how many."""
    (count, depth, lines, columns), P = shape, 0
    for m in range(count):
        for t in range(depth):
            for u in range(lines):
                for v in range(columns):
                    place[P] = m * target[1, 0] + t * target[1, 1] + u * target[1, 2] + v * target[1, 3]
                    P += 1
    return P


@step
def windows_of(shape, source, sides, direct, t, u, v, row, out, P):
    """Fill `row` and `out` from P on: where the windows of a phase start in a box, and the numbers of their outputs. Returns the end.

    The first output of the phase is (t, u, v).
    """
    (count, depth, lines, columns), C = shape, source[0, 4]
    _, _, hop, _, step_, _, pixels = rows_of_sides(sides)
    size = source[1, 0] if direct else pixels[0] * pixels[1] * pixels[2] * C
    for m in range(count if t < depth else 0):
        for h in range(u, lines, hop[1]):
            start, to = m * size + h // hop[1] * step_[1] * pixels[2] * C, ((m * depth + t) * lines + h) * columns
            for w in range(v, columns, hop[2]):
                row[P] = start + w // hop[2] * step_[2] * C
                out[P] = to + w
                P += 1
    return P


@loop
def product(lo, hi, x, source, sides, images, direct, phases, cell, w, b, panels, V, G, parts, target, y):
    """The output: `x, w (panels, K, width), b (O), (phases*O) or (0) -> y`; boxes, and of each `parts` of the panels, are shared out.

    Full panels whose outputs are contiguous in y are written there directly; others go through a box of outputs.
    """
    Q, K, width = w.shape
    R, C, lanes, wide, apart, F = rows_of(V, G, 0), source[0, 4], REGISTER // x.itemsize, Q * width, target[1, 4], phases.shape[1]
    _, _, hop, _, _, long, _ = rows_of_sides(sides)
    most = images * hop[0] * long[1] * hop[1] * long[2] * hop[2]
    weights, straight, steps = w.reshape(w.size), apart == 1 and panels[1].min() == width, np.arange(K) * (width * max(G, 1))
    row, out, ends = np.empty(most + F * R, np.int64), np.empty(most + F * R, np.int64), np.zeros(F + 1, np.int64)
    place, run, known, found = np.empty(most, np.int64), np.empty(most, np.int64), (0, 0, 0, 0), 0
    buffer, bias = x if direct else np.empty(numbers_of_box(sides, images, C, lanes), x.dtype), np.zeros(F * wide, x.dtype)
    for q in range(F * Q if b.size else 0):
        for o in range(panels[1, q % Q]):
            bias[q * width + o] = b[(q // Q * (panels[0, Q - 1] + panels[1, Q - 1]) + panels[0, q % Q] + o) % b.size]
    result = y if straight else np.empty((most + max(R, lanes)) * wide, x.dtype)
    for unit in range(lo, hi):
        box, part = unit // parts, unit % parts
        at, first = load_box(box, x, source, sides, images, direct, target, buffer)
        shape = outputs_of(box, source, sides, images)
        if shape != known:  # a box of the same shape as the last one reuses its tables
            known, found = shape, outputs_in(shape, target, place)
            neighbours(place, found, lanes, run)
            for f in range(F):
                P = windows_of(shape, source, sides, direct, phases[0, f], phases[1, f], phases[2, f], row, out, ends[f])
                for p in range(ends[f], P):
                    out[p] = place[out[p]] if straight else out[p] * wide
                ends[f + 1] = P + R if ends[f] < P else P
                for p in range(P, ends[f + 1]):  # surplus rows compute the last position again
                    row[p], out[p] = row[P - 1], out[P - 1]
        for f in range(F):
            start, end, some = phases[3, f], phases[4, f], short(phases[4, f] - phases[3, f])
            for q in range(part * Q // parts, (part + 1) * Q // parts):
                column, base, panel, begun = q * width, at + panels[2, q], q * K * width, f * wide + q * width
                to = first + panels[0, q] if straight else column
                for k in range(start, max(end, start + 1), some):
                    for p in range(ends[f], ends[f + 1] - R, R):
                        stop, more = min(end, k + some), k - start
                        tile(V, buffer, base, row, p, cell, k, stop, weights, panel, steps, result, to, out, bias, begun, more, G, 0)
        for q in range(part * Q // parts, 0 if straight else (part + 1) * Q // parts):
            store(result, wide, q * width, first, place, run, found, apart, panels[0, q], panels[1, q], y)


@loop
def weight_gradient(lo, hi, x, source, sides, images, direct, phases, cell, boxes, gy, panels, V, G, target, parts, pieces, gw):
    """The gradient of the weight in `parts` sums, of some boxes each: `x, gy -> gw (parts, Q, K, width)`.

    Parts, each split into `pieces` by panels and phases, are shared out.
    """
    (_, Q, K, width), F, inputs = gw.shape, phases.shape[1], max(G, 1)
    R, C, lanes, apart = rows_of(V, G, 1), source[0, 4], REGISTER // x.itemsize, target[1, 4]
    _, _, hop, _, _, long, _ = rows_of_sides(sides)
    most = images * hop[0] * long[1] * hop[1] * long[2] * hop[2]
    row, place, steps, ends = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64), np.zeros(F + 1, np.int64)
    run, known, P, result = np.empty(most, np.int64), (0, 0, 0, 0), 0, gw.reshape(gw.size)
    shown, out, last = np.empty(cell.size + F * R, np.int64), np.empty((cell.size + F * R) * inputs, np.int64), np.zeros(F + 1, np.int64)
    for f in range(F):
        last[f + 1] = last[f] + phases[4, f] - phases[3, f] + R
        for k in range(last[f], last[f + 1]):  # surplus rows compute the last cell again
            c = min(phases[3, f] + k - last[f], phases[4, f] - 1)
            shown[k] = cell[c]
            for i in range(inputs):
                out[k * inputs + i] = (c * inputs + i) * width
    buffer = x if direct else np.empty(numbers_of_box(sides, images, C, lanes), x.dtype)
    upstream, zeros = np.zeros(most * width, x.dtype), np.zeros(width, x.dtype)
    for unit in range(lo, hi):
        part, piece = unit // pieces, unit % pieces
        low, high = piece * Q * F // pieces, (piece + 1) * Q * F // pieces
        for one in range(low, high):
            start, f = (part * Q + one // F) * K, one % F
            result[(start + phases[3, f] * inputs) * width : (start + phases[4, f] * inputs) * width] = 0
        for box in range(part * boxes // parts, (part + 1) * boxes // parts):
            at, first = load_box(box, x, source, sides, images, direct, target, buffer)
            shape = outputs_of(box, source, sides, images)
            if shape != known:
                known, P = shape, outputs_in(shape, target, place)
                neighbours(place, P, lanes, run)
                for f in range(F):
                    ends[f + 1] = windows_of(shape, source, sides, direct, phases[0, f], phases[1, f], phases[2, f], row, steps, ends[f])
                steps[:P] *= width
            for one in range(low, high):
                q, f = one // F, one % F
                if f == 0 or one == low:
                    load(gy, first, place, run, P, apart, panels[0, q], panels[1, q], upstream, width)
                start, base, some = (part * Q + q) * K * width, at + panels[2, q], short(ends[f + 1] - ends[f])
                for p in range(ends[f], ends[f + 1], some):
                    for k in range(last[f], last[f + 1] - R, R):
                        stop = min(ends[f + 1], p + some)
                        tile(V, buffer, base, shown, k, row, p, stop, upstream, 0, steps, result, start, out, zeros, 0, 1, G, 1)


@loop
def scatter(lo, hi, z, grid, C, apart, hop, gx):
    """The gradient of an image from the gradient of its windows: `z (N, C*T*U*V, A*I*J) -> gx (N, numbers)`; images are shared out.

    `grid (6, 3)` holds cells, strides, low paddings, dilations, positions and pixels along d, h, w; pixel i of channel c is at
    `c*apart + i*hop`.
    """
    shown, stride, low, dilation, positions, pixels = rows_of_grid(grid)
    T, U, V, I, J = shown[0], shown[1], shown[2], positions[1], positions[2]
    image = np.empty((C, padded(grid, 0), padded(grid, 1), padded(grid, 2)), z.dtype)
    for n in range(lo, hi):
        image[:] = 0
        for k in range(z.shape[1]):
            c, t, u, v = k // (T * U * V), k // (U * V) % T, k // V % U, k % V
            for p in range(0, z.shape[2], J):
                a, i, cells = p // J // I, p // J % I, z[n, k, p : p + J]
                line = image[c, a * stride[0] + t * dilation[0], i * stride[1] + u * dilation[1], v * dilation[2] :]
                if stride[2] == 1:
                    for j in range(cells.size):
                        line[j] += cells[j]
                else:
                    for j in range(cells.size):
                        line[j * stride[2]] += cells[j]
        for c in range(C):
            for pixel in range(0, pixels[0] * pixels[1] * pixels[2], pixels[2]):
                d, h = pixel // pixels[2] // pixels[1], pixel // pixels[2] % pixels[1]
                line = image[c, d + low[0], h + low[1], low[2] :]
                for w in range(pixels[2]):
                    gx[n, c * apart + (pixel + w) * hop] = line[w]


# ---- Weights -----------------------------------------------------------------------------------------------------------------------------


@step
def run_of(offset, j, stop, lanes):
    """How many offsets from the j-th on are consecutive, at most a register of them."""
    run = 1
    while run < lanes and j + run < stop and offset[j + run] == offset[j] + run:
        run += 1
    return run


@loop
def pack(lo, hi, w, offset, order, hop, group, O, p):
    """The weight in panels: p[q, order[j], o] = w[g*group + offset[j] + (first + o)*hop] for the outputs of panel q from `first` on.

    `w (numbers) -> p (panels, K, width)`; blocks of ascending offsets are shared out. A group g has ceil(O / width) panels. Surplus
    outputs have weights of others.
    """
    K, width, each, lanes = offset.size, p.shape[2], (O + p.shape[2] - 1) // p.shape[2], REGISTER // w.itemsize
    blocks, block = (K + BLOCK - 1) // BLOCK, np.zeros(lanes * lanes, w.dtype)
    for unit in range(lo, hi):
        q, j, first = unit // blocks, unit % blocks * BLOCK, unit // blocks % each * width
        stop = min(K, j + BLOCK)
        while j < stop:
            run = run_of(offset, j, stop, lanes)
            for o in range(0, width, lanes):
                some, start = min(lanes, O - first - o), q // each * group + offset[j] + (first + o) * hop
                if run > 1:
                    transpose_block(w, start, hop, block, 0, lanes, run, some)
                else:
                    for k in range(some):
                        block[k] = w[start + k * hop]
                for i in range(run):
                    row, line = p[q, order[j + i], o : o + lanes], block[i * lanes : (i + 1) * lanes]
                    for k in range(lanes):
                        row[k] = line[k]
            j += run


@loop
def unpack(lo, hi, p, offset, order, hop, group, O, w):
    """The inverse of `pack`, for a weight that is the sum of several parts: `p (sums, panels, K, width) -> w (numbers)`."""
    K, width, each, lanes = offset.size, p.shape[3], (O + p.shape[3] - 1) // p.shape[3], REGISTER // w.itemsize
    blocks, block = (K + BLOCK - 1) // BLOCK, np.zeros(lanes * lanes, w.dtype)
    for unit in range(lo, hi):
        q, j, first = unit // blocks, unit % blocks * BLOCK, unit // blocks % each * width
        stop = min(K, j + BLOCK)
        while j < stop:
            run = run_of(offset, j, stop, lanes)
            for o in range(0, min(width, O - first), lanes):
                some, start = min(lanes, O - first - o), q // each * group + offset[j] + (first + o) * hop
                for i in range(run):
                    line = block[i * lanes : (i + 1) * lanes]
                    for part in range(p.shape[0]):
                        more = p[part, q, order[j + i], o : o + lanes]
                        for k in range(lanes):
                            line[k] = more[k] if part == 0 else line[k] + more[k]
                transpose_block(block, 0, lanes, w, start, hop, some, run)
            j += run
