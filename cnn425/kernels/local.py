"""Local layers as loops: every position p has a window of pixels and a set q of weights, its own or one that several positions share.

    output                  y[n,o,p]          = b[o,q] + sum over c, t, u, v  of  x[n,c, window p, cell t,u,v] * w[q,o,c,t,u,v]
    gradient of x           gx[n,c,d,h,w]     = sum over o and the cells (p, t, u, v) that show the pixel  of  gy[n,o,p] * w[q,o,c,t,u,v]
    gradient of w           gw[q,o,c,t,u,v]   = sum over n and the positions p of the set  of  gy[n,o,p] * x[n,c, window p, cell t,u,v]

for positions p = (a, i, j) in reading order and images `(N, C, D, H, W)`, all contiguous. The channels of group g are those from g*C/G on,
so C below counts the channels of a group. `grid` holds the geometry (`rows_of_grid`), `sets (P)` the q of each position, `start (P)` the
pixel of its first cell in an image with zeros around, and `cell (K)` the pixels from there to its others. For few images a window is
copied to where its cells are neighbours, as its weights are. For many the sums are products by `cnn425.kernels.tile`: one per position,
with images side by side in the vector registers, and for the gradient of the weight one per set, with outputs in them.
"""

import numpy as np

from cnn425.kernels.box import REGISTER, fill, padded, prefetch, transpose
from cnn425.kernels.threads import loop, step, sums
from cnn425.kernels.tile import SHORT, rows_of, tile

BLOCK = 32  # positions whose outputs are reordered together: neighbours in memory are written together


@step
def with_zeros(x, grid, cell, first, last):
    """The numbers of images `(N, C, D, H, W)` with zeros around, where windows see them that start from pixel `first` to pixel `last`.

    Only these lines are written, so that a thread needs no memory for others. Where there are no zeros, it is x itself.
    """
    (N, C, D, H, W), low, (depth, height, width) = x.shape, grid[2], (padded(grid, 0), padded(grid, 1), padded(grid, 2))
    if (depth, height, width) == (D, H, W):
        return x.reshape(x.size)
    image = np.empty((N, C, depth, height, width), x.dtype)
    begin, end = first // width, (last + cell[cell.size - 1] % (depth * height * width)) // width + 1
    for n in range(N):
        for c in range(C):
            for line in range(begin, end):
                d, h, target = line // height - low[0], line % height - low[1], image[n, c, line // height, line % height]
                target[:] = 0
                if 0 <= d < D and 0 <= h < H:
                    pixels, inside = x[n, c, d, h], target[low[2] : low[2] + W]
                    for w in range(W):
                        inside[w] = pixels[w]
    return image.reshape(image.size)


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
def interleave(lo, hi, x, low, image, back):
    """image[b, c, d, h, w, k] = x[b*width + k, c, d - low, h - low, w - low], zero outside: `x (N, C, D, H, W) -> (B, C, D, H, W, width)`.

    With `back` the other way round, without the zeros. Channels of blocks of images are shared out.
    """
    N, C, D, H, W = x.shape
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


@loop
def multiply(lo, hi, image, w, b, groups, sets, start, cell, V, blocks, y):
    """The output: `image (B, C, D, H, W, width), w (Q, G*O, K), b (G*O, Q or 1) -> y (N, G*O, P)`; `blocks` of positions."""
    (_, GO, K), (N, _, P), (_, C, D, H, W, width) = w.shape, y.shape, image.shape
    R, lanes, O, total = rows_of(V, 0, 0), REGISTER // w.itemsize, GO // groups, C * D * H * W
    weights, pixels, result = w.reshape(w.size), image.reshape(image.size), y.reshape(y.size)
    row, out = np.minimum(np.arange(O + R), O - 1) * K, np.minimum(np.arange(O + R), O - 1) * width
    along, place, zeros = np.arange(K), cell * width, np.zeros(width, w.dtype)
    part = np.empty((BLOCK + 1) * GO * width, w.dtype)
    for unit in range(lo, hi):
        n, first = unit // blocks, unit % blocks * P // blocks
        count = (unit % blocks + 1) * P // blocks - first
        for p in range(count):
            q, after = sets[first + p] % b.shape[1], sets[min(first + p + 1, P - 1)]
            for o in range(GO):
                part[(p * GO + o) * width : (p * GO + o + 1) * width] = b[o, q]
            for g in range(groups):
                panel = (n * total + g * (C // groups) * D * H * W + start[first + p]) * width
                base, to = (sets[first + p] * GO + g * O) * K, (p * GO + g * O) * width
                for k in range(0, K, SHORT):
                    for o in range(0, O, R):
                        for r in range(o, min(o + R, O) if after != sets[first + p] else 0):
                            for next_ in range(k, min(K, k + SHORT), lanes):
                                prefetch(weights, ((after * groups + g) * O + r) * K + next_)
                        tile(V, weights, base, row, o, along, k, min(K, k + SHORT), pixels, panel, place, part, to, out, zeros, 0, 1, 0, 0)
        for o in range(GO):
            transpose(part, o * width, GO * width, result, (n * width * GO + o) * P + first, GO * P, min(width, N - n * width), count)


@loop
def multiply_gradient(lo, hi, gy, w, groups, sets, start, cell, V, parts, image):
    """The gradient of the image: `gy (N, G*O, P), w (Q, G*O, K) -> image (B, C, D, H, W, width)`.

    Blocks of images, and of each some channels, are shared out; every pixel adds up what its windows say in their order.
    """
    (_, GO, K), (N, _, P), (_, C, D, H, W, width) = w.shape, gy.shape, image.shape
    R, lanes, O, each, volume = rows_of(V, 0, 0), REGISTER // w.itemsize, GO // groups, C // groups, D * H * W
    weights, pixels, upstream, cells = w.reshape(w.size), image.reshape(image.size), gy.reshape(gy.size), K // each
    across, place, zeros = np.arange(O) * K, np.arange(O) * width, np.zeros(width, w.dtype)
    rows = np.zeros((BLOCK + 1) * GO * width, w.dtype)
    for unit in range(lo, hi):
        n, low, high = unit // parts, unit % parts * C // parts, (unit % parts + 1) * C // parts
        pixels[(n * C + low) * volume * width : (n * C + high) * volume * width] = 0
        for first in range(0, P, BLOCK):
            count = min(BLOCK, P - first)
            for o in range(low // each * O, ((high - 1) // each + 1) * O):
                transpose(upstream, (n * width * GO + o) * P + first, GO * P, rows, o * width, GO * width, count, min(width, N - n * width))
            for g in range(low // each, (high - 1) // each + 1):
                begin, end = max(low - g * each, 0) * cells, min(high - g * each, each) * cells
                row = np.minimum(np.arange(begin, end + R), end - 1)  # rows that are too many compute the last cell again
                out = cell[row] * width
                for p in range(count):
                    base, to = (sets[first + p] * GO + g * O) * K, (n * C * volume + g * each * volume + start[first + p]) * width
                    panel, after = (p * GO + g * O) * width, sets[min(first + p + 1, P - 1)]
                    for o in range(0, O, SHORT):
                        stop = min(O, o + SHORT)
                        for k in range(0, end - begin, R):
                            for next_ in range(o, stop if after != sets[first + p] and k % lanes < R else 0):
                                prefetch(weights, ((after * groups + g) * O + next_) * K + begin + k)
                            tile(V, weights, base, row, k, across, o, stop, rows, panel, place, pixels, to, out, zeros, 0, 1, 0, 0)


@step
def cells_in_box_order(cell, low, high, C, GC, volume, width, row, out):
    """Where cells low to high - 1 of a window are in a box, in its order, and where their sums go; how many, with copies of the last."""
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
    first, run, runs, hop, GC, GO = band[2], band[3], band[4], band[5], source[0, 4], gy.size // (source[0, 0] * P)
    for n in range(images):
        fill(x, source, m + n, corner[0], corner[1], corner[2], box, image, n * box[0] * box[1] * box[2] * GC)
    for i in range(images * runs):
        transpose(gy, (m + i // runs) * GO * P + first + i % runs * hop, P, upstream, i * run * GO, GO, run, GO)


@loop
def multiply_weights(lo, hi, gy, x, source, groups, grid, bands, axis, order, bounds, start, cell, V, parts, images, gw):
    """The gradient of the weight: `gy (N, G*O, P), x (numbers) -> gw (Q, G*O, K)`; bands of sets, and of each parts of the cells.

    `bands (B, 8)` holds of each the first set and the one behind the last; the first position, how many are neighbours, how often, and how
    far apart; and along `axis` the first pixel and their number. A thread copies them into its own memory, channels last and with zeros
    around, of so many images at a time; sums of a band begin with the first of them and end with the last. `source (2, 5)` says where the
    pixels of x are. `order` lists the positions set by set, those of set q from bounds[q] to bounds[q + 1].
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
    image = np.empty(images * np.max(bands[:, 7]) * plane * GC, x.dtype)
    upstream = np.empty(images * np.max(bands[:, 3] * bands[:, 4]) * GO + width, gy.dtype)
    for unit in range(lo, hi):
        band, low, high = bands[unit // parts], unit % parts * K // parts, (unit % parts + 1) * K // parts
        first, run, runs, hop, corner[axis], box[axis] = band[2], band[3], band[4], band[5], band[6], band[7]
        found = cells_in_box_order(cell, low, high, C, GC, volume, width, row, out)
        for m in range(0, N, images):
            many = min(images, N - m)
            if images < N or unit == lo or unit % parts == 0:  # else they are there
                load_band(m, many, band, corner, box, x, source, image, upstream_, P, upstream)
            for q in range(band[0], band[1]):
                count, sums_ = bounds[q + 1] - bounds[q], many * (bounds[q + 1] - bounds[q])
                for i in range(count):
                    p = order[bounds[q] + i]
                    pixel_, place_ = start[p] - start[first], (p - first) // hop * run + (p - first) % hop
                    for n in range(many):
                        pixel[n * count + i], place[n * count + i] = (n * box[axis] * plane + pixel_) * GC, (n * run * runs + place_) * GO
                for o in range(0, groups * wide, width):
                    g, to = o // wide, (q * GO + o // wide * O + o % wide) * K + low
                    base, panel, outputs = g * C, g * O + o % wide, min(width, O - o % wide)
                    slot = ((q - band[0]) * groups * wide + o) * (K + R) if images < N else 0
                    for i in range(0, sums_, SHORT):
                        for k in range(0, found - R, R):
                            for c in range(outputs if i == 0 and m + many == N and k % lanes < R else 0):
                                prefetch(result, to + c * K + k)
                            stop, more = min(sums_, i + SHORT), m + i
                            tile(V, image, base, row, k, pixel, i, stop, upstream, panel, place, part, slot, out, zeros, 0, more, 0, 0)
                    if m + many == N:
                        transpose(part, slot + low * width, width, result, to, K, outputs, high - low)
