"""Boxes: parts of an image copied into a thread's own memory, channels last and zero-padded, whatever the layout of the image.

Pixel (n, d, h, w, c) is in memory at the sum of its indices, each times its stride. In most images the pixels of a line are contiguous, and
the channels of a pixel are far apart: then a box is filled with blocks that are transposed in vector registers. This file also holds what
several loops share: transposition, prefetching, the rows of a geometry, and common instructions.
"""

import numpy as np

from cnn425.kernels.machine_code import CAPABILITY
from cnn425.kernels.threads import machine_step, step

REGISTER = 64  # bytes of a vector register; where registers are smaller, the compiler uses several
AHEAD = 6  # how many registers ahead of the current read are prefetched


def spread(builder, number, vector):
    """The instructions that put a number into all lanes of a vector."""
    from llvmlite import ir

    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(64)(0))
    return builder.shuffle_vector(one, one, ir.VectorType(ir.IntType(32), vector.count)([0] * vector.count))


def keep_rolled(builder, block):
    """Keep LLVM from unrolling the loop that ends with this block."""
    rolled = builder.module.add_metadata(["llvm.loop.unroll.disable"])
    loop_id = builder.module.add_metadata([rolled])
    loop_id.operands = (loop_id, rolled)  # LLVM knows a loop by metadata that names itself
    block.terminator.set_metadata("llvm.loop", loop_id)


def _parts(builder, a):
    """Functions that emit instructions: `load(place)` reads I numbers into a register, `store(register, place)` writes its first K."""
    from llvmlite import ir
    from numba.core import cgutils

    word, short, byte, bit = (ir.IntType(n) for n in (64, 32, 8, 1))
    lanes = REGISTER // a.size
    vector, numbers, bits = (ir.VectorType(t, lanes) for t in (a.number, short, bit))

    def known(name, *arguments, result=None):
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result or ir.VoidType(), arguments), name)

    if a.size < 4 or CAPABILITY != "AVX512":  # masks for so many lanes are rare, and without AVX-512 masks are slow or missing
        copy, part = known("llvm.memcpy.p0.p0.i64", *[byte.as_pointer()] * 2, word, bit), cgutils.alloca_once(builder, vector)

        def moved(to, origin, count):
            with builder.if_else(builder.icmp_signed("==", count, word(lanes))) as (whole, some):
                with whole:
                    builder.store(builder.load(origin, align=a.size), to, align=a.size)
                with some:
                    ends = (builder.bitcast(end, byte.as_pointer()) for end in (to, origin))
                    builder.call(copy, [*ends, builder.mul(count, word(a.size)), bit(0)])

        def load(place):
            moved(part, place, a.I)
            return builder.load(part)

        def store(register, place):
            builder.store(register, part)
            moved(place, part, a.K)

        return load, store

    def first(count):
        return builder.icmp_signed("<", numbers(list(range(lanes))), spread(builder, builder.trunc(count, short), numbers))

    kind, seen, kept = f"v{lanes}{'i' if isinstance(a.number, ir.IntType) else 'f'}{8 * a.size}.p0", first(a.I), first(a.K)
    masked_load = known(f"llvm.masked.load.{kind}", vector.as_pointer(), short, bits, vector, result=vector)
    masked_store = known(f"llvm.masked.store.{kind}", vector, vector.as_pointer(), short, bits)
    return (
        lambda place: builder.call(masked_load, [place, short(a.size), seen, vector([a.number(0)] * lanes)]),
        lambda register, place: builder.call(masked_store, [register, place, short(a.size), kept]),
    )


def _fetch(builder, place):
    """The instruction that fetches memory into the cache."""
    from llvmlite import ir
    from numba.core import cgutils

    short, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    fetch = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte, *[short] * 3]), "llvm.prefetch.p0")
    builder.call(fetch, [builder.bitcast(place, byte), *map(short, (0, 3, 1))])


@machine_step(lambda builder, a: _fetch(builder, builder.gep(a.x, [a.at])))
def prefetch(x, at):
    """Fetch the numbers around x[at] into the cache: they are needed soon."""


def _block(builder, a):
    """The transposition in machine code: rows are interleaved in pairs, log2(lanes) times; lanes outside the block are masked."""
    from llvmlite import ir

    word, lanes = ir.IntType(64), REGISTER // a.size
    (load, store), last, lines = _parts(builder, a), builder.sub(a.K, word(1)), []

    def place(data, start, distance, count):
        found = builder.gep(data, [builder.add(start, builder.mul(distance, count))])
        return builder.bitcast(found, ir.VectorType(a.number, lanes).as_pointer())

    for k in range(lanes):
        origin = place(a.x, a.at, a.hop, builder.select(builder.icmp_signed("<", word(k), last), word(k), last))
        lines.append(load(origin))
        _fetch(builder, builder.gep(origin, [word(AHEAD)]))
    halves = range(lanes // 2), range(lanes // 2, lanes)
    masks = [ir.VectorType(ir.IntType(32), lanes)([i + lanes * odd for i in half for odd in (0, 1)]) for half in halves]
    for _ in range(lanes.bit_length() - 1):  # lines i and i + lanes / 2 are interleaved into two new lines
        pairs = zip(lines[: lanes // 2], lines[lanes // 2 :], strict=True)
        lines = [builder.shuffle_vector(one, other, mask) for one, other in pairs for mask in masks]
    end = builder.append_basic_block("end")
    for i, line in enumerate(lines):
        store(line, place(a.y, a.to, a.step_, word(i)))
        following = builder.append_basic_block()
        builder.cbranch(builder.icmp_signed("<", word(i + 1), a.I), following, end)
        builder.position_at_end(following)
    builder.branch(end)
    builder.position_at_end(end)


@machine_step(_block)
def transpose_block(x, at, hop, y, to, step_, I, K):
    """y[to + i*step_ + k] = x[at + k*hop + i], for i < I and k < K, both at most the lanes of a register."""
    for i in range(I):
        for k in range(K):
            y[to + i * step_ + k] = x[at + k * hop + i]


@step
def transpose(x, at, hop, y, to, step_, I, K):
    """y[to + i*step_ + k] = x[at + k*hop + i], for i < I and k < K, of any size."""
    lanes = REGISTER // x.itemsize
    for i in range(0, I, lanes):
        for k in range(0, K, lanes):
            transpose_block(x, at + k * hop + i, hop, y, to + i * step_ + k, step_, min(lanes, I - i), min(lanes, K - k))


@step
def rows_of_grid(grid):
    """The rows of a geometry `grid (6, 3)`: cells, strides, low paddings, dilations, positions and pixels along d, h, w."""
    return grid[0], grid[1], grid[2], grid[3], grid[4], grid[5]


@step
def padded(grid, side):
    """The size of the zero-padded image along a side; it includes all that windows reach."""
    cells, stride, low, dilation, positions, pixels = rows_of_grid(grid)
    return max(low[side] + pixels[side], (positions[side] - 1) * stride[side] + (cells[side] - 1) * dilation[side] + 1)


@step
def with_zeros(x, grid, cell, first, last):
    """The zero-padded images `(N, C, D, H, W)` as a row of numbers, filled where windows that start at pixels `first` to `last` reach.

    Other lines are not written, so that a thread needs no memory for them. Without padding the result is x itself.
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


@step
def fill(x, source, n, d, h, w, box, buffer, at):
    """buffer[at + ((t*U + u)*V + v)*C + c] = x[n, d + t, h + u, w + v, c], and 0 outside of the image; `box` holds T, U and V.

    `source (2, 5)` holds the sizes of the image along n, d, h, w, c, and the strides.
    """
    hop, apart = source[1, 3], source[1, 4]
    T, U, V, D, H, W, C = box[0], box[1], box[2], source[0, 1], source[0, 2], source[0, 3], source[0, 4]
    if w == 0 and V == W and source[1, 2] == W * hop and h >= 0 and h + U <= H:  # contiguous lines count as one long line
        U, V, W = 1, U * V, U * V
    left, right = min(V, max(0, -w)), max(0, min(V, W - w))
    for t in range(T):
        for u in range(U):
            start, z, y = at + (t * U + u) * V * C, d + t, h + u
            if z < 0 or z >= D or y < 0 or y >= H or left >= right:
                buffer[start : start + V * C] = 0
                continue
            if left:
                buffer[start : start + left * C] = 0
            if right < V:
                buffer[start + right * C : start + V * C] = 0
            first = n * source[1, 0] + z * source[1, 1] + y * source[1, 2] + (w + left) * hop
            if hop == C and (apart == 1 or C == 1):
                pixels, target = x[first : first + (right - left) * C], buffer[start + left * C : start + right * C]
                for k in range(target.size):
                    target[k] = pixels[k]
            elif hop == 1:
                transpose(x, first, apart, buffer, start + left * C, C, right - left, C)
            else:
                for v in range(left, right):
                    for c in range(C):
                        buffer[start + v * C + c] = x[first + (v - left) * hop + c * apart]


@step
def neighbours(place, P, lanes, run):
    """run[p] = how many positions from p on are contiguous in memory, at most as many as a register has lanes."""
    for p in range(P - 1, -1, -1):
        run[p] = min(lanes, run[p + 1] + 1) if p + 1 < P and place[p + 1] == place[p] + 1 else 1


@step
def load(y, start, place, run, P, apart, first, outputs, part, width):
    """part[p*width + o] = y[start + place[p] + (first + o)*apart], for P positions."""
    p = 0
    while p < P:
        at, to, count = start + place[p] + first * apart, p * width, run[p] if apart != 1 else 1
        if apart == 1:
            line, target = y[at : at + outputs], part[to : to + outputs]
            for o in range(outputs):
                target[o] = line[o]
        else:
            transpose(y, at, apart, part, to, width, count, outputs)
        p += count


@step
def store(part, wide, column, start, place, run, P, apart, first, outputs, y):
    """y[start + place[p] + (first + o)*apart] = part[p*wide + column + o], for P positions: the inverse of `load`."""
    p = 0
    while p < P:
        at, to, count = p * wide + column, start + place[p] + first * apart, run[p] if apart != 1 else 1
        if apart == 1:
            line, target = part[at : at + outputs], y[to : to + outputs]
            for o in range(outputs):
                target[o] = line[o]
        else:
            transpose(part, at, wide, y, to, apart, outputs, count)
        p += count
