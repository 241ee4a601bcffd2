"""Local layers as loops: every position p has a window of pixels and a set q of weights, its own or one that several positions share.

    output                  y[n,o,p]          = b[o,q] + sum over c, t, u, v  of  x[n,c, window p, cell t,u,v] * w[q,o,c,t,u,v]
    gradient of x           gx[n,c,d,h,w]     = sum over o and the cells (p, t, u, v) that show the pixel  of  gy[n,o,p] * w[q,o,c,t,u,v]
    gradient of w           gw[q,o,c,t,u,v]   = sum over n and the positions p of the set  of  gy[n,o,p] * x[n,c, window p, cell t,u,v]

for positions p = (a, i, j) in reading order and images `(N, C, D, H, W)`, all contiguous. The channels of group g are those from g*C/G on,
so C below counts the channels of a group. `grid` holds the geometry (`rows_of_grid`), `sets (P)` the q of each position, `start (P)` the
pixel of its first cell in the zero-padded image, and `cell (K)` the offsets of its cells from there. For few images a window is copied so
that its cells are contiguous, as its weights are. For many, the sums are matrix products by `cnn425.kernels.tile`: one per position, with
images side by side in the vector registers, and for the gradient of the weight one per set, with outputs side by side.
"""

import numpy as np

from cnn425.kernels.box import REGISTER, fill, padded, prefetch, transpose, with_zeros
from cnn425.kernels.threads import loop, step, sums
from cnn425.kernels.tile import ROWS, rows_of, short, tile


@sums
def output(lo, hi, x, w, b, groups, grid, sets, start, cell, y):
    """The output: `x (N, G*C, D, H, W), w (Q, G*O, K), b (G*O, Q or 1) -> y (N, G*O, P)`; positions are shared out."""
    N, (_, GO, K) = x.shape[0], w.shape
    image, window, O = with_zeros(x, grid, cell, start[lo], start[hi - 1]), np.empty(K, x.dtype), GO // groups
    numbers = image.size // (N * groups)
    for p in range(lo, hi):
        q = sets[p]
        for n in range(N):
            for g in range(groups):
                first = (n * groups + g) * numbers + start[p]
                for k in range(K):
                    window[k] = image[first + cell[k]]
                for o in range(g * O, g * O + O):
                    total, weight = b[o, q % b.shape[1]], w[q, o]
                    for k in range(K):
                        total += window[k] * weight[k]
                    y[n, o, p] = total


@loop
def input_gradient(lo, hi, gy, w, groups, grid, sets, start, cell, parts, gx):
    """The gradient of x: `gy (N, G*O, P), w (Q, G*O, K) -> gx (N, G*C, D, H, W)`; parts of the lines of images are shared out."""
    (_, GO, K), (_, GC, D, H, W), depth, height, width = w.shape, gx.shape, padded(grid, 0), padded(grid, 1), padded(grid, 2)
    lines, window, O, direct = depth * height, np.empty(K, w.dtype), GO // groups, (depth, height, width) == (D, H, W)
    below, larger = cell % (lines * width) // width, np.empty((0 if direct else GC, lines, width), w.dtype)
    for unit in range(lo, hi):
        n, low, high = unit // parts, unit % parts * lines // parts, (unit % parts + 1) * lines // parts
        image = gx[n].reshape(GC, lines, width) if direct else larger
        image[:, low:high], numbers = 0, image.reshape(image.size)
        for p in range(gy.shape[2]):
            q, line = sets[p], start[p] // width  # cell k is `below[k]` lines below the first one
            if line >= high or line + below[K - 1] < low:
                continue
            for g in range(groups):
                window[:] = 0
                for o in range(g * O, g * O + O):
                    upstream, weight = gy[n, o, p], w[q, o]
                    for k in range(K):
                        window[k] += upstream * weight[k]
                first, whole = g * (GC // groups) * lines * width + start[p], line >= low and line + below[K - 1] < high
                for k in range(K):
                    if whole or low <= line + below[k] < high:
                        numbers[first + cell[k]] += window[k]
        for c in range(0 if direct else GC):
            for line in range(low, high):
                d, h, pixels = line // height - grid[2, 0], line % height - grid[2, 1], image[c, line, grid[2, 2] :]
                if 0 <= d < D and 0 <= h < H:
                    target = gx[n, c, d, h]
                    for i in range(W):
                        target[i] = pixels[i]


@loop
def weight_gradient(lo, hi, gy, x, groups, grid, order, bounds, start, cell, gw):
    """The gradient of w: `gy (N, G*O, P), x (N, G*C, D, H, W) -> gw (Q, G*O, K)`; sets of weights are shared out.

    `order (P)` lists the positions set by set, those of set q from bounds[q] to bounds[q + 1].
    """
    N, (_, GO, K), first, last = x.shape[0], gw.shape, start[start.size - 1], start[0]
    for p in order[bounds[lo] : bounds[hi]]:
        first, last = min(first, start[p]), max(last, start[p])
    image, window, O = with_zeros(x, grid, cell, first, last), np.empty(K, x.dtype), GO // groups
    numbers = image.size // (N * groups)
    for q in range(lo, hi):
        for i in range(bounds[q] * N, bounds[q + 1] * N):
            p, n = order[i // N], i % N
            for g in range(groups):
                here = (n * groups + g) * numbers + start[p]
                for k in range(K):
                    window[k] = image[here + cell[k]]
                for o in range(g * O, g * O + O):
                    upstream, gradient = gy[n, o, p], gw[q, o]
                    if i == bounds[q] * N:
                        for k in range(K):
                            gradient[k] = upstream * window[k]
                    else:
                        for k in range(K):
                            gradient[k] += upstream * window[k]


# ---- Many images and channels ------------------------------------------------------------------------------------------------------------


@loop
def interleave(lo, hi, x, grid, image, back):
    """image[b, c, d, h, w, k] = x[b*width + k, c, d - low, h - low, w - low], zero outside: `x (N, C, D, H, W) -> (B, C, D, H, W, width)`.

    With `back` it copies the other way, without the zeros. Channels of blocks of images are shared out.
    """
    (N, C, D, H, W), low = x.shape, grid[2]
    _, _, _, height, across, width = image.shape
    numbers, hop = x.reshape(x.size), C * D * H * W
    for unit in range(lo, hi):
        b, c = unit // C, unit % C
        plane, images = image[b, c].reshape(image[b, c].size), min(width, N - b * width)
        if not back:
            plane[:] = 0
        for line in range(D * H):
            at, to = b * width * hop + (c * D * H + line) * W, ((line // H + low[0]) * height + line % H + low[1]) * across + low[2]
            if back:
                for k in range(images):
                    for w in range(0, W, REGISTER // x.itemsize):
                        prefetch(numbers, at + k * hop + 2 * W + w)
                transpose(plane, to * width, width, numbers, at, hop, images, W)
            else:
                transpose(numbers, at, hop, plane, to * width, width, W, images)


@step
def positions_of(runs, first, last):
    """The positions where the runs before `first`, and those before `last`, end."""
    return runs[first - 1, 0] + runs[first - 1, 1] if first else 0, runs[last - 1, 0] + runs[last - 1, 1]


@step
def room_of(runs, outputs, width, lanes, longest):
    """How a thread stores the outputs of a block: offset of the first, stride of outputs, stride of positions, total size.

    The positions of a run are contiguous. A run may begin before its block, so there is room in front.
    """
    if np.max(runs[:, 1]) == 1:
        return 0, width, outputs * width, longest * outputs * width
    line = (lanes + longest) * width + lanes  # a power of two as stride would use few sets of the cache
    return lanes * width, line, width, outputs * line


@loop
def multiply(lo, hi, image, w, b, groups, sets, start, cell, runs, overlap, blocks, longest, few, y):
    """The output: `image (B, C, D, H, W, width), w (Q, G*O, K), b (G*O, Q or 1) -> y (N, G*O, P)`; `blocks` of runs.

    A run is a row of neighbouring positions that use one set of weights; `runs (R, 2)` holds the first position and length of each. The
    images of a run lie side by side and fill vector registers. A block has at most `longest` positions. Where runs `overlap`, a run begins
    inside the one before it. Later runs are computed first, so the earlier run overwrites their common positions. `few`: tiles of few rows.
    """
    (_, GO, K), (N, _, P), (_, C, D, H, W, width), R = w.shape, y.shape, image.shape, runs.shape[0]
    lanes, O, total = REGISTER // w.itemsize, GO // groups, C * D * H * W
    weights, pixels, result = w.reshape(w.size), image.reshape(image.size), y.reshape(y.size)
    front, line, hop, size = room_of(runs, GO, width, lanes, longest)
    row, out = np.minimum(np.arange(O + ROWS), O - 1) * K, np.minimum(np.arange(O + ROWS), O - 1) * line
    each, place, zeros, part = np.arange(K), cell * width, np.zeros(4 * lanes, w.dtype), np.empty(size, w.dtype)
    some = short(K)
    for unit in range(lo, hi):
        n, first, last = unit // blocks, unit % blocks * R // blocks, (unit % blocks + 1) * R // blocks
        begin, end = positions_of(runs, first, last)
        for i in range(first, last):
            r = first + last - 1 - i if overlap else i
            (p, count), then = runs[r], min(max(r - 1 if overlap else r + 1, 0), R - 1)
            V, to, q, after = count * width // lanes, front + (p - begin) * hop, sets[p + count - 1], sets[runs[then, 0]]
            for o in range(GO):
                part[o * line + to : o * line + to + count * width] = b[o, q % b.shape[1]]
            for g in range(groups):
                panel = (n * total + g * (C // groups) * D * H * W + start[p]) * width
                base, to_ = (q * GO + g * O) * K, g * O * line + to
                for k in range(0, K, some):
                    for o in range(0, O, rows_of(V, 0, few)):
                        for row_ in range(o, min(o + rows_of(V, 0, few), O) if after != q else 0):
                            for next_ in range(k, min(K, k + some), lanes):
                                prefetch(weights, ((after * groups + g) * O + row_) * K + next_)
                        tile(V, weights, base, row, o, each, k, min(K, k + some), pixels, panel, place, part, to_, out, zeros, 0, 1, 0, few)
        for o in range(GO):
            at, images = o * line + front, min(width, N - n * width)
            transpose(part, at, hop, result, (n * width * GO + o) * P + begin, GO * P, images, end - begin)


@loop
def multiply_gradient(lo, hi, gy, w, groups, sets, start, cell, columns, runs, longest, parts, image):
    """The gradient of the image: `gy (N, G*O, P), w (Q, G*O, K) -> image (B, C, D, H, W, width)`; runs as for `multiply`.

    Blocks of images, each split by channels, are shared out; every pixel adds up its windows in order. Where a run begins inside the one
    before it, the common output gradients are set to zero. Neighbouring cells of a run show the same pixels, so they must not be rows of
    one tile: cells are taken column by column of the window, of which there are `columns`, or 1 where runs have one position. The last
    column is first, so that a pixel adds up positions in order, whatever the runs are.
    """
    (_, GO, K), (N, _, P), (_, C, D, H, W, width), most = w.shape, gy.shape, image.shape, longest // runs[:, 1].max()
    lanes, O, each, volume, cells = REGISTER // w.itemsize, GO // groups, C // groups, D * H * W, K // (C // groups)
    weights, pixels, upstream = w.reshape(w.size), image.reshape(image.size), gy.reshape(gy.size)
    front, line, hop, size = room_of(runs, GO, width, lanes, longest)
    across, place, zeros, rows = np.arange(O) * K, np.arange(O) * line, np.zeros(4 * lanes, w.dtype), np.zeros(size, w.dtype)
    some = short(O)
    for unit in range(lo, hi):
        n, low, high = unit // parts, unit % parts * C // parts, (unit % parts + 1) * C // parts
        pixels[(n * C + low) * volume * width : (n * C + high) * volume * width] = 0
        for first in range(0, runs.shape[0], most):
            last, images = min(runs.shape[0], first + most), min(width, N - n * width)
            begin, end = positions_of(runs, first, last)
            for o in range(low // each * O, ((high - 1) // each + 1) * O):
                transpose(upstream, (n * width * GO + o) * P + begin, GO * P, rows, o * line + front, hop, end - begin, images)
            for g in range(low // each, (high - 1) // each + 1):
                from_, stop = max(low - g * each, 0) * cells, min(high - g * each, each) * cells
                column, k = (stop - from_) // columns, np.minimum(np.arange(stop - from_ + ROWS), stop - from_ - 1)  # the last cell again
                row = from_ + (k % column + 1) * columns - 1 - k // column
                out = cell[row] * width
                for r in range(first, last):
                    p, count = runs[r]
                    V, q, after = count * width // lanes, sets[p + count - 1], sets[runs[min(r + 1, runs.shape[0] - 1), 0]]
                    base, to = (q * GO + g * O) * K, (n * C * volume + g * each * volume + start[p]) * width
                    panel, R = g * O * line + front + (p - begin) * hop, rows_of(V, 0, 0)
                    for i in range(0, stop - from_, max(column // R, 1) * R):  # so many cells, which show different pixels
                        for o in range(0, O, some):
                            last_ = min(O, o + some)
                            for k_ in range(i, min(i + max(column // R, 1) * R, stop - from_), R):
                                for next_ in range(o, last_ if after != q and k_ % lanes < R else 0):
                                    prefetch(weights, ((after * groups + g) * O + next_) * K + from_ + k_)
                                tile(V, weights, base, row, k_, across, o, last_, rows, panel, place, pixels, to, out, zeros, 0, 1, 0, 0)
                    if r + 1 < last and runs[r + 1, 0] < p + count:
                        for o in range(g * O, g * O + O):
                            at = o * line + front - begin * hop
                            rows[at + runs[r + 1, 0] * hop : at + (p + count) * hop] = 0


@step
def cells_in_box_order(cell, low, high, C, GC, volume, width, row, out):
    """Fill `row` and `out`: where cells low to high - 1 are in a box, in its order, and where their sums go. Returns how many."""
    K, found = cell.size, 0
    for i in range(row.size):
        k = min(i, K - 1) % C * (K // C) + min(i, K - 1) // C
        if low <= k < high or i >= K:
            row[found], out[found] = cell[k] % volume * GC + cell[k] // volume, k * width
            found += 1
    return found


@step
def load_band(m, images, band, corner, box, x, source, image, gy, P, upstream):
    """Copy what a band needs of images m to m + images - 1, channels last: their pixels and output gradients."""
    first, run, GC, GO = band[2], band[3], source[0, 4], gy.size // (source[0, 0] * P)
    for n in range(images):
        fill(x, source, m + n, corner[0], corner[1], corner[2], box, image, n * box[0] * box[1] * box[2] * GC)
        transpose(gy, (m + n) * GO * P + first, P, upstream, n * run * GO, GO, run, GO)


@loop
def multiply_weights(lo, hi, gy, x, source, groups, grid, bands, axis, order, bounds, start, cell, V, parts, images, gw):
    """The gradient of the weight: `gy (N, G*O, P), x (numbers) -> gw (Q, G*O, K)`; bands of sets, and of each parts of the cells.

    `bands (B, 6)` holds for each the first set and the one after the last; the first position, and how many; and along `axis` the first
    pixel and their number. A thread copies a band of `images` images at a time into its own memory, channels last and zero-padded; the sums
    of a band run over all images. `source (2, 5)` says where the pixels of x are. `order` lists the positions set by set, those of set q
    from bounds[q] to bounds[q + 1].
    """
    (_, GO, K), (N, _, P), GC, result, upstream_ = gw.shape, gy.shape, source[0, 4], gw.reshape(gw.size), gy.reshape(gy.size)
    R, lanes, O, C = rows_of(V, 0, 0), REGISTER // gw.itemsize, GO // groups, GC // groups
    width, zeros, corner, box = V * lanes, np.zeros(V * lanes, gw.dtype), np.empty(3, np.int64), np.empty(3, np.int64)
    for side in range(3):
        corner[side], box[side] = -grid[2, side], padded(grid, side)
    volume, plane, wide = box[0] * box[1] * box[2], box[0] * box[1] * box[2] // box[axis], (O + width - 1) // width * width
    most, sets = np.max(bounds[1:] - bounds[:-1]) * images, np.max(bands[:, 1] - bands[:, 0])
    row, out, pixel, place = np.empty(K + R, np.int64), np.empty(K + R, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    part = np.empty((sets * groups * wide if images < N else width) * (K + R) + lanes * width, gw.dtype)
    image = np.empty(images * np.max(bands[:, 5]) * plane * GC, x.dtype)
    upstream = np.empty(images * np.max(bands[:, 3]) * GO + width, gy.dtype)
    for unit in range(lo, hi):
        band, low, high = bands[unit // parts], unit % parts * K // parts, (unit % parts + 1) * K // parts
        first, run, corner[axis], box[axis] = band[2], band[3], band[4], band[5]
        found = cells_in_box_order(cell, low, high, C, GC, volume, width, row, out)
        for m in range(0, N, images):
            many = min(images, N - m)
            if images < N or unit == lo or unit % parts == 0:  # else already loaded
                load_band(m, many, band, corner, box, x, source, image, upstream_, P, upstream)
            for q in range(band[0], band[1]):
                count, sums_ = bounds[q + 1] - bounds[q], many * (bounds[q + 1] - bounds[q])
                some = short(sums_)
                for i in range(count):
                    p = order[bounds[q] + i]
                    for n in range(many):
                        pixel[n * count + i] = (n * box[axis] * plane + start[p] - start[first]) * GC
                        place[n * count + i] = (n * run + p - first) * GO
                for o in range(0, groups * wide, width):
                    g, to = o // wide, (q * GO + o // wide * O + o % wide) * K + low
                    base, panel, outputs = g * C, g * O + o % wide, min(width, O - o % wide)
                    slot = ((q - band[0]) * groups * wide + o) * (K + R) if images < N else 0
                    for i in range(0, sums_, some):
                        for k in range(0, found - R, R):
                            for c in range(outputs if i == 0 and m + many == N and k % lanes < R else 0):
                                prefetch(result, to + c * K + k)
                            stop, more = min(sums_, i + some), m + i
                            tile(V, image, base, row, k, pixel, i, stop, upstream, panel, place, part, slot, out, zeros, 0, more, 0, 0)
                    if m + many == N:
                        transpose(part, slot + low * width, width, result, to, K, outputs, high - low)
