"""Pools as loops: a window is reduced one side after the other, first over its rows, then along the row that is left.

Loops see an image as `(D, H, W*K)`, where K neighbours in memory belong to different images: the compiler puts them in one vector register.
Where channels are last in memory K is their number. Contiguous images come as `(M, D, H, W)`; IMAGES of them are interleaved, line by line,
so that they look the same. Signals and images have one row or plane, D = H = 1.

The windows along a side are a table `(4, positions)`: the first pixel inside the image, the number of cells inside the image, the number of
cells that an average counts, the pixels from cell to cell. So ordinary, ceil_mode and adaptive windows are one case.
"""

import numpy as np

from cnn425.kernels.box import LANES, move, transpose
from cnn425.kernels.threads import loop, step

IMAGES, RESULTS = 16, 1 << 8  # images that are interleaved, and outputs of them that are separated at a time
BUFFER = 1 << 11  # numbers of a row that stay in the nearest cache


@step
def interleave(x, first, d, h, line):
    """line[w*IMAGES + k] = x[first + k, d, h, w], for images that exist; blocks are written whole."""
    (M, D, H, W), lanes = x.shape, LANES // x.itemsize
    numbers, images, hop = x.reshape(x.size), min(IMAGES, M - first), D * H * W
    start = first * hop + (d * H + h) * W
    for w in range(0, W, lanes):
        if start + w + (images - 1) * hop + lanes <= x.size:
            for k in range(0, IMAGES, lanes):
                some = max(1, images - k)
                transpose(numbers, start + w + min(k, images - 1) * hop, hop, some, line, w * IMAGES + k, IMAGES)
        else:
            for i in range(w, min(W, w + lanes)):
                for k in range(images):
                    line[i * IMAGES + k] = numbers[start + i + k * hop]


@step
def separate(results, count, first, place, y):
    """y[first + k, place + p] = results[p*IMAGES + k], for `count` outputs of the images that exist: the inverse of `interleave`."""
    (M, Q), lanes, numbers = y.shape, LANES // y.itemsize, y.reshape(y.size)
    images, block = min(IMAGES, M - first), np.empty(lanes * lanes, y.dtype)
    for p in range(0, count, lanes):
        for k in range(0, images, lanes):
            to = (first + k) * Q + place + p
            move(results, p * IMAGES + k, IMAGES, numbers, to, Q, min(lanes, images - k), min(lanes, count - p), block)


@step
def span(table):
    """The lines that a window and those after it may want: its pixels, and up to a step before them, where a window was cut at the edge."""
    longest = 1
    for i in range(table.shape[1]):
        longest = max(longest, table[1, i] * table[3, i])
    return longest


@step
def follow(x, first, planes, rows, a, i, ready, image):
    """Interleave the lines of windows (a, i) that are not in `image` yet, line h of plane d at their remainders; the next line comes back.

    Lines before `ready` are there, or not needed any more.
    """
    ready = max(ready, rows[0, i] - rows[3, i] + 1)
    while ready <= rows[0, i] + (rows[1, i] - 1) * rows[3, i]:
        for t in range(planes[1, a]):
            d = planes[0, a] + t * planes[3, a]
            interleave(x, first, d, ready, image[d % image.shape[0], ready % image.shape[1]])
        ready += 1
    return ready


# ---- The largest number ------------------------------------------------------------------------------------------------------------------


@step
def stretch_of(columns, j, K):
    """The windows from j on whose columns, of K numbers each, fit into the buffers: (one behind the last, first column, columns)."""
    stop, first, end = j, columns[0, j], columns[0, j]
    while stop < columns.shape[1]:
        low, high = columns[0, stop], columns[0, stop] + (columns[1, stop] - 1) * columns[3, stop] + 1
        if stop > j and (max(end, high) - min(first, low)) * K > BUFFER:
            break
        first, end, stop = min(first, low), max(end, high), stop + 1
    return stop, first, end - first


@step
def largest_of_four(image, K, H, W, planes, rows, columns, a, i, y, where):
    """The windows (a, i, j) of all columns j, of two times two cells: `image (.., .., W*K) -> y, where (J*K)`."""
    depth, height, _ = image.shape
    d, h, last = planes[0, a], rows[0, i], rows[0, i] + rows[3, i]
    line, below, top, bottom = image[d % depth, h % height], image[d % depth, last % height], (d * H + h) * W, (d * H + last) * W
    for j in range(columns.shape[1]):
        w, v = columns[0, j], columns[0, j] + columns[3, j]
        p, q, r, s = line[w * K : (w + 1) * K], line[v * K : (v + 1) * K], below[w * K : (w + 1) * K], below[v * K : (v + 1) * K]
        value, place = y[j * K : (j + 1) * K], where[j * K : (j + 1) * K]
        first, second, third, fourth = np.int32(top + w), np.int32(top + v), np.int32(bottom + w), np.int32(bottom + v)
        for k in range(K):
            number, here = p[k], first
            wins = (q[k] > number) | (q[k] != q[k])
            number, here = q[k] if wins else number, second if wins else here
            wins = (r[k] > number) | (r[k] != r[k])
            number, here = r[k] if wins else number, third if wins else here
            wins = (s[k] > number) | (s[k] != s[k])
            value[k], place[k] = s[k] if wins else number, fourth if wins else here


@step
def largest_of_row(image, K, H, W, planes, rows, columns, a, i, best, pixel, y, where):
    """The windows (a, i, j) of all columns j: `image (.., .., W*K) -> y, where (J*K)`, by way of the buffers `best, pixel`."""
    if planes[1, a] == 1 and rows[1, i] == 2 and (columns[1] == 2).all():  # the most common size needs no buffer
        return largest_of_four(image, K, H, W, planes, rows, columns, a, i, y, where)
    depth, height, _ = image.shape
    J, begin, empty = columns.shape[1], 0, planes[1, a] == 0 or rows[1, i] == 0
    while begin < J:
        end, left, width = stretch_of(columns, begin, K)
        for t in range(planes[1, a]):
            d = planes[0, a] + t * planes[3, a]
            for u in range(rows[1, i]):
                h = rows[0, i] + u * rows[3, i]
                line, above = image[d % depth, h % height, left * K : (left + width) * K], np.int32((d * H + h) * W)
                if t == 0 and u == 0:
                    for w in range(line.size):
                        best[w] = line[w]
                        pixel[w] = above
                else:
                    for w in range(line.size):
                        wins = (line[w] > best[w]) | (line[w] != line[w])
                        best[w] = line[w] if wins else best[w]
                        pixel[w] = above if wins else pixel[w]
        for j in range(begin, end):
            value, place = y[j * K : (j + 1) * K], where[j * K : (j + 1) * K]
            if empty or columns[1, j] == 0:
                value[:] = -np.inf
                place[:] = -1
            for v in range(0 if empty else columns[1, j]):
                w = columns[0, j] + v * columns[3, j]
                first, across = (w - left) * K, np.int32(w)
                line, above = best[first : first + K], pixel[first : first + K]
                if v == 0:
                    for k in range(K):
                        value[k] = line[k]
                        place[k] = above[k] + across
                else:
                    for k in range(K):
                        number, here = line[k], np.int32(above[k] + across)
                        wins = (number > value[k]) | ((number == value[k]) & (here < place[k]))
                        wins |= (number != number) & ((value[k] == value[k]) | (here > place[k]))
                        value[k] = number if wins else value[k]
                        place[k] = here if wins else place[k]
        begin = end
    return None


@loop
def max_pool_interleaved(lo, hi, x, K, planes, rows, columns, y, where):
    """y[m,a,i,j,k] = the largest of x[m, d, h, w, k] over the cells of window (a, i, j); `where`: its pixel `(d*H + h)*W + w`.

    `x (M, D, H, W*K) -> y, where (M*A*I, J*K)`; the rows of windows are shared out. Of equal numbers the first pixel wins, of NaNs the
    last; a window without cells is minus infinity and has pixel -1.
    """
    _, _, H, L = x.shape
    A, I = planes.shape[1], rows.shape[1]
    best, pixel = np.empty(max(L, 1), x.dtype), np.empty(max(L, 1), np.int32)
    for unit in range(lo, hi):
        m, a, i = unit // (A * I), unit // I % A, unit % I
        largest_of_row(x[m], K, H, L // K, planes, rows, columns, a, i, best, pixel, y[unit], where[unit])


@loop
def max_pool(lo, hi, x, planes, rows, columns, y, where):
    """The same for contiguous images, `x (M, D, H, W) -> y, where (M, A*I*J)`; blocks of IMAGES images are shared out."""
    (_, _, H, W), I, J = x.shape, rows.shape[1], columns.shape[1]
    image = np.zeros((span(planes), span(rows), (W + LANES) * IMAGES), x.dtype)
    best, pixel = np.empty(W * IMAGES, x.dtype), np.empty(W * IMAGES, np.int32)
    numbers, pixels = np.empty((RESULTS + J) * IMAGES, x.dtype), np.empty((RESULTS + J) * IMAGES, np.int32)
    for unit in range(lo, hi):
        done, count = 0, 0
        for a in range(planes.shape[1]):
            ready = 0
            for i in range(I):
                ready, to = follow(x, unit * IMAGES, planes, rows, a, i, ready, image), count * IMAGES
                largest_of_row(image, IMAGES, H, W, planes, rows, columns, a, i, best, pixel, numbers[to:], pixels[to:])
                count += J
                if count >= RESULTS or (i == I - 1 and a == planes.shape[1] - 1):
                    separate(numbers, count, unit * IMAGES, done, y)
                    separate(pixels, count, unit * IMAGES, done, where)
                    done, count = done + count, 0


@loop
def route(lo, hi, gy, where, parts, gx):
    """gx[m,p,k] = the sum of gy[m,q,k] over the windows q that pixel p won. `gy, where (M, Q*K) -> gx (M, P, K)`.

    Images are shared out, and where channels are last, `parts` equal parts of the K neighbours: M*parts units.
    """
    _, P, K = gx.shape
    for unit in range(lo, hi):
        m, start, stop = unit // parts, unit % parts * K // parts, (unit % parts + 1) * K // parts
        g, winner, image = gy[m], where[m], gx[m]
        if K == 1:
            pixels = image.reshape(P)
            pixels[:] = 0
            for q in range(g.size):
                if winner[q] >= 0:
                    pixels[winner[q]] += g[q]
            continue
        image[:, start:stop] = 0
        for q in range(0, g.size, K):
            upstream, won = g[q + start : q + stop], winner[q + start : q + stop]
            for k in range(stop - start):
                if won[k] >= 0:
                    image[won[k], start + k] += upstream[k]


@loop
def pick(lo, hi, t, where, y):
    """y[m,q,k] = t[m, where[m,q,k], k], and 0 where there is no winner. `t (M, P, K) -> y (M, Q, K)`; images are shared out."""
    _, Q, K = y.shape
    for m in range(lo, hi):
        image, winner, numbers = t[m], where[m], y[m]
        for q in range(Q):
            for k in range(K):
                numbers[q, k] = image[winner[q, k], k] if winner[q, k] >= 0 else 0


# ---- The sum -----------------------------------------------------------------------------------------------------------------------------


@step
def sum_of_row(image, K, W, planes, rows, columns, a, i, total, divisor, y):
    """The windows (a, i, j) of all columns j: `image (.., .., W*K) -> y (J*K)`, by way of the buffer `total (W*K)`."""
    depth, height, L = image.shape[0], image.shape[1], W * K
    if planes[1, a] == 0 or rows[1, i] == 0:
        total[:] = 0
    for t in range(planes[1, a]):
        d = planes[0, a] + t * planes[3, a]
        for u in range(rows[1, i]):
            line = image[d % depth, (rows[0, i] + u * rows[3, i]) % height, :L]
            if t == 0 and u == 0:
                for w in range(L):
                    total[w] = line[w]
            else:
                for w in range(L):
                    total[w] += line[w]
    for j in range(columns.shape[1]):
        value, cells = y[j * K : (j + 1) * K], y.dtype.type(divisor if divisor != 0 else planes[2, a] * rows[2, i] * columns[2, j])
        if columns[1, j] == 0:
            value[:] = 0
        for v in range(columns[1, j]):
            w = columns[0, j] + v * columns[3, j]
            line = total[w * K : (w + 1) * K]
            if v == 0:
                for k in range(K):
                    value[k] = line[k]
            else:
                for k in range(K):
                    value[k] += line[k]
        if cells != 1:
            for k in range(K):
                value[k] /= cells


@loop
def sum_pool_interleaved(lo, hi, x, K, planes, rows, columns, divisor, y):
    """y[m,a,i,j,k] = the sum of x over the cells of window (a, i, j), divided by `divisor`, or if that is 0 by the cells that count.

    `x (M, D, H, W*K) -> y (M*A*I, J*K)`; the rows of windows are shared out. The adjoint is the same loop: the gradient of a pixel is a sum
    over a window of windows, those that show it.
    """
    A, I = planes.shape[1], rows.shape[1]
    total = np.empty(x.shape[3], x.dtype)
    for unit in range(lo, hi):
        m, a, i = unit // (A * I), unit // I % A, unit % I
        sum_of_row(x[m], K, x.shape[3] // K, planes, rows, columns, a, i, total, divisor, y[unit])


@loop
def sum_pool(lo, hi, x, planes, rows, columns, divisor, y):
    """The same for contiguous images, `x (M, D, H, W) -> y (M, A*I*J)`; blocks of IMAGES images are shared out."""
    W, I, J = x.shape[3], rows.shape[1], columns.shape[1]
    image = np.zeros((span(planes), span(rows), (W + LANES) * IMAGES), x.dtype)
    total, numbers = np.empty(W * IMAGES, x.dtype), np.empty((RESULTS + J) * IMAGES, x.dtype)
    for unit in range(lo, hi):
        done, count = 0, 0
        for a in range(planes.shape[1]):
            ready = 0
            for i in range(I):
                ready = follow(x, unit * IMAGES, planes, rows, a, i, ready, image)
                sum_of_row(image, IMAGES, W, planes, rows, columns, a, i, total, divisor, numbers[count * IMAGES :])
                count += J
                if count >= RESULTS or (i == I - 1 and a == planes.shape[1] - 1):
                    separate(numbers, count, unit * IMAGES, done, y)
                    done, count = done + count, 0
