"""Boxes: parts of an image in a thread's own memory, channels last and with zeros around, however the image itself is stored.

The place of pixel (n, d, h, w, c) in memory is the sum of each times a stride. In most images the pixels of a line are neighbours, and the
channels of a pixel are far apart: such a box is filled with blocks that are transposed in vector registers.
"""

import numpy as np

from cnn425.kernels.threads import machine_step, step

LANES = 64  # bytes of a vector register; the compiler takes several smaller ones where there is none so large
IMAGES = 32  # that are interleaved


def _transpose():
    """The transposition in machine code: rows are interleaved in pairs, as often as it takes."""
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    @intrinsic
    def transpose(typing, x, at, hop, rows, y, to, step_):
        """See `transpose` below."""

        def generate(context, builder, signature, values):
            word, lanes = ir.IntType(64), LANES // (x.dtype.bitwidth // 8)
            number, align = context.get_data_type(x.dtype), x.dtype.bitwidth // 8
            vector = ir.VectorType(number, lanes)
            source, target = (make_array(signature.args[i])(context, builder, values[i]).data for i in (0, 4))
            at, hop, last, to, step_ = values[1], values[2], builder.sub(values[3], word(1)), values[5], values[6]

            def place(data, start, distance, count):
                return builder.bitcast(builder.gep(data, [builder.add(start, builder.mul(distance, count))]), vector.as_pointer())

            lines = []
            for k in range(lanes):
                row = builder.select(builder.icmp_signed("<", word(k), last), word(k), last)
                lines.append(builder.load(place(source, at, hop, row), align=align))
            masks = [
                ir.Constant(ir.VectorType(ir.IntType(32), lanes), [half + lanes * odd for half in halves for odd in (0, 1)])
                for halves in (range(lanes // 2), range(lanes // 2, lanes))
            ]
            for _ in range(lanes.bit_length() - 1):  # a line and the one half the lines later become two neighbours
                pairs = zip(lines[: lanes // 2], lines[lanes // 2 :], strict=True)
                lines = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
            for k, line in enumerate(lines):
                builder.store(line, place(target, to, step_, word(k)), align=align)
            return context.get_dummy_value()

        i = types.intp
        return types.void(x, i, i, i, y, i, i), generate

    return transpose


@machine_step(_transpose)
def transpose(x, at, hop, rows, y, to, step_):
    """y[to + i*step_ + k] = x[at + k*hop + i], for the i and k of a vector register; of rows k that do not exist the last one is read."""
    lanes = LANES // x.itemsize
    block = np.stack([x[at + min(k, rows - 1) * hop :][:lanes] for k in range(lanes)])
    for i in range(lanes):
        y[to + i * step_ : to + i * step_ + lanes] = block[:, i]


@step
def move(x, at, hop, y, to, step_, I, K, block):
    """y[to + i*step_ + k] = x[at + k*hop + i], for I of the i and K of the k of a register; `block` holds a register of registers."""
    lanes = LANES // x.itemsize
    if at + (K - 1) * hop + lanes > x.size:
        for i in range(I):
            for k in range(K):
                y[to + i * step_ + k] = x[at + k * hop + i]
    elif I == K == lanes:
        transpose(x, at, hop, K, y, to, step_)
    else:
        transpose(x, at, hop, K, block, 0, lanes)
        for i in range(I):
            for k in range(K):
                y[to + i * step_ + k] = block[i * lanes + k]


@step
def fill(x, source, n, d, h, w, box, buffer, at):
    """buffer[at + ((t*U + u)*V + v)*C + c] = x[n, d + t, h + u, w + v, c], and 0 outside of the image; `box` holds T, U and V.

    `source (2, 5)` holds the sizes of the image along n, d, h, w, c, and the strides. Blocks are written whole: up to a register of pixels
    behind the box is written, too.
    """
    lanes, hop, apart = LANES // x.itemsize, source[1, 3], source[1, 4]
    T, U, V, D, H, W, C = box[0], box[1], box[2], source[0, 1], source[0, 2], source[0, 3], source[0, 4]
    left, right = min(V, max(0, -w)), max(0, min(V, W - w))
    for t in range(T):
        for u in range(U):
            start, z, y = at + (t * U + u) * V * C, d + t, h + u
            line = buffer[start : start + V * C]
            if z < 0 or z >= D or y < 0 or y >= H or left >= right:
                line[:] = 0
                continue
            line[: left * C] = 0
            first = n * source[1, 0] + z * source[1, 1] + y * source[1, 2] + (w + left) * hop
            if hop == C and (apart == 1 or C == 1):
                pixels, target = x[first : first + (right - left) * C], line[left * C : right * C]
                for k in range(target.size):
                    target[k] = pixels[k]
            elif hop == 1:
                for c in range((C - 1) // lanes * lanes, -1, -lanes):  # what a block writes behind the last channel is written again
                    for v in range(left, right, lanes):
                        block = first + v - left + c * apart
                        if block + (min(lanes, C - c) - 1) * apart + lanes <= x.size:
                            transpose(x, block, apart, C - c, buffer, start + v * C + c, C)
                        else:
                            for i in range(min(lanes, right - v)):
                                for k in range(min(lanes, C - c)):
                                    buffer[start + (v + i) * C + c + k] = x[block + i + k * apart]
            else:
                for v in range(left, right):
                    for c in range(C):
                        line[v * C + c] = x[first + (v - left) * hop + c * apart]
            line[right * C :] = 0


@step
def are_neighbours(place, p, count):
    """Whether some positions lie one behind the other in memory."""
    steps = 0
    for i in range(p, p + count - 1):
        steps += 1 if place[i + 1] == place[i] + 1 else 0
    return steps == count - 1


@step
def load(y, place, P, apart, first, outputs, part, width):
    """part[p*width + o] = y[place[p] + (first + o)*apart], for P positions; blocks are written whole."""
    lanes = LANES // y.itemsize
    if apart == 1:
        for p in range(P):
            line, target = y[place[p] + first : place[p] + first + outputs], part[p * width : p * width + outputs]
            for o in range(outputs):
                target[o] = line[o]
        return
    for p in range(0, P, lanes):
        count = min(lanes, P - p)
        neighbours = are_neighbours(place, p, count)
        for o in range(0, outputs, lanes):
            start, some = place[p] + (first + o) * apart, min(lanes, outputs - o)
            if neighbours and start + (some - 1) * apart + lanes <= y.size:
                transpose(y, start, apart, some, part, p * width + o, width)
            else:
                for i in range(count):
                    for k in range(some):
                        part[(p + i) * width + o + k] = y[place[p + i] + (first + o + k) * apart]


@step
def store(part, wide, column, P, place, apart, first, outputs, y):
    """y[place[p] + (first + o)*apart] = part[p*wide + column + o], for P positions: the inverse of `load`."""
    lanes = LANES // y.itemsize
    if apart == 1:
        for p in range(P):
            line, target = part[p * wide + column : p * wide + column + outputs], y[place[p] + first : place[p] + first + outputs]
            for o in range(outputs):
                target[o] = line[o]
        return
    block = np.empty(lanes * lanes, y.dtype)
    for p in range(0, P, lanes):
        count = min(lanes, P - p)
        neighbours = are_neighbours(place, p, count)
        for o in range(0, outputs, lanes):
            some, source = min(lanes, outputs - o), p * wide + column + o
            if neighbours:
                move(part, source, wide, y, place[p] + (first + o) * apart, apart, some, count, block)
            else:
                for k in range(some):
                    for i in range(count):
                        y[place[p + i] + (first + o + k) * apart] = part[source + i * wide + k]


# ---- Images side by side -----------------------------------------------------------------------------------------------------------------


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
