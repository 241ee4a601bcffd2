"""A convolution as one matrix product whose left factor is never written down: its numbers are gathered from the image by offsets.

    output                  y[p, o]   = b[o] + sum over k  of  x[row[p] + cell[k]] * w[k, o]       p a position, k = (t, u, v, c) a cell
    gradient of the weight  gw[k, o]  = sum over p         of  x[cell[k] + row[p]] * gy[p, o]      the same with p and k exchanged

In an image whose channels are last in memory, padded with zeros, the number that cell k of window p shows is at `row[p] + cell[k]`: where
the window starts, and where the cell is inside. The gradient of the image is the first line again, over the output gradient. Outputs come
in panels of V vector registers; a tile of some rows p and one panel stays in registers while k runs, which is as fast as a processor can
multiply and add.
"""

import numpy as np

from cnn425.kernels.threads import loop, machine_step, step

SHORT = 32  # products of a sum
BLOCK = 64  # rows of a weight that stay in the cache while it is transposed
LANES = 64  # bytes of a vector register of outputs; the compiler takes several smaller ones where there is none so large


def _tile():
    """The tile in machine code: one fused multiply-add per row, register and k."""
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    @intrinsic(prefer_literal=True)
    def tile(typing, x, base, row, p, cell, k, stop, w, panel, step_, y, first, out, b, bias, add, R, V):
        """See `tile` below."""
        if not isinstance(R, types.IntegerLiteral) or not isinstance(V, types.IntegerLiteral):
            return None
        rows, registers, word = range(R.literal_value), range(V.literal_value), ir.IntType(64)

        def generate(context, builder, signature, values):
            names = ("x", "base", "row", "p", "cell", "k", "stop", "w", "panel", "step", "y", "first", "out", "b", "bias", "add", "R", "V")
            numbers = dict(zip(names, values, strict=True))
            kinds = dict(
                zip(("x", "row", "cell", "w", "y", "out", "b"), (signature.args[i] for i in (0, 2, 4, 7, 10, 12, 13)), strict=True)
            )
            data = {name: make_array(kind)(context, builder, numbers[name]).data for name, kind in kinds.items()}
            number = context.get_data_type(x.dtype)
            lanes = LANES // (x.dtype.bitwidth // 8)
            vector = ir.VectorType(number, lanes)
            same = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            name = f"llvm.fma.v{lanes}f{x.dtype.bitwidth}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)

            def at(name, *offsets):
                place = offsets[0]
                for offset in offsets[1:]:
                    place = builder.add(place, offset)
                return builder.gep(data[name], [place])

            def load(place):
                return builder.load(builder.bitcast(place, vector.as_pointer()), align=x.dtype.bitwidth // 8)

            def finish(start):
                for r in rows:
                    for v in registers:
                        place = builder.bitcast(at("y", targets[r], word(v * lanes)), vector.as_pointer())
                        builder.store(builder.fadd(builder.load(totals[r][v]), start(r, v)), place, align=x.dtype.bitwidth // 8)

            starts = [at("x", numbers["base"], builder.load(at("row", numbers["p"], word(r)))) for r in rows]
            targets = [builder.add(numbers["first"], builder.load(at("out", numbers["p"], word(r)))) for r in rows]
            totals = [[cgutils.alloca_once(builder, vector) for _ in registers] for _ in rows]
            for total in (total for row in totals for total in row):
                builder.store(ir.Constant(vector, [0.0] * lanes), total)
            with cgutils.for_range_slice(builder, numbers["k"], numbers["stop"], word(1), word) as (k, _):
                offset, weights = builder.load(at("cell", k)), builder.add(numbers["panel"], builder.mul(k, numbers["step"]))
                factors = [load(at("w", weights, word(v * lanes))) for v in registers]
                for r in rows:
                    pixel = builder.insert_element(
                        ir.Constant(vector, ir.Undefined), builder.load(builder.gep(starts[r], [offset])), word(0)
                    )
                    pixel = builder.shuffle_vector(pixel, ir.Constant(vector, ir.Undefined), same)
                    for v in registers:
                        builder.store(builder.call(fma, [pixel, factors[v], builder.load(totals[r][v])]), totals[r][v])
            with builder.if_else(cgutils.is_true(builder, numbers["add"])) as (goes_on, begins):
                with goes_on:
                    finish(lambda r, v: load(at("y", targets[r], word(v * lanes))))
                with begins:
                    finish(lambda r, v: load(at("b", numbers["bias"], word(v * lanes))))
            return context.get_dummy_value()

        i = types.intp
        return types.void(x, i, row, i, cell, i, i, w, i, i, y, i, out, b, i, i, R, V), generate

    return tile


@machine_step(_tile)
def tile(x, base, row, p, cell, k, stop, w, panel, step_, y, first, out, b, bias, add, R, V):
    """y[first + out[p + r] + o] = (y or b[bias + o]) + sum over k to stop - 1 of x[base + row[p + r] + cell[k]] * w[panel + k*step_ + o].

    For R rows r and the o of V registers; with `add` the sum is added to what `y` holds. Long sums are made of short ones, so that their
    rounding errors stay small.
    """
    width = V * LANES // x.itemsize
    for r in range(R):
        start = first + out[p + r]
        total = np.zeros(width, x.dtype)
        for cell_ in range(k, stop):
            total += x[base + row[p + r] + cell[cell_]] * w[panel + cell_ * step_ : panel + cell_ * step_ + width]
        y[start : start + width] = total + (y[start : start + width] if add else b[bias : bias + width])


@step
def rows_of(V):
    """The rows of a tile of V registers: as many as registers are left for."""
    return 6 if V == 4 else 8 if V == 2 else 12


@step
def tile_of(V, x, base, row, p, cell, k, stop, w, panel, step_, y, first, out, b, bias, add):
    """The tile of V registers."""
    if V == 4:
        tile(x, base, row, p, cell, k, stop, w, panel, step_, y, first, out, b, bias, add, 6, 4)
    elif V == 2:
        tile(x, base, row, p, cell, k, stop, w, panel, step_, y, first, out, b, bias, add, 8, 2)
    else:
        tile(x, base, row, p, cell, k, stop, w, panel, step_, y, first, out, b, bias, add, 12, 1)


@loop
def product(lo, hi, x, row, P, cell, w, b, panels, V, chunk, out, y):
    """The output: `x (images, pixels*C), w (panels, K, width), b (panels*width) -> y (images, positions*O)`.

    Images and chunks of positions are shared out: units are images * ceil(P / chunk). `row` and `out (P and some more)` say where windows
    start in the image and their outputs in y; `cell (panels, K)` where the cells of a window are; `panels (2, panels)` the first output of
    a panel and the number of its outputs. A panel may write over the outputs of the next ones, which come after it.
    """
    _, K, width = w.shape
    R, chunks, pixels, numbers = rows_of(V), (P + chunk - 1) // chunk, x.shape[1], y.shape[1]
    total = panels[0, -1] + panels[1, -1]
    part = np.empty(R * width, x.dtype)
    flat, result, weights, starts = x.reshape(x.size), y.reshape(y.size), w.reshape(w.size), np.arange(R) * width
    for unit in range(lo, hi):
        n, first = unit // chunks, unit % chunks * chunk
        for q in range(w.shape[0]):
            o, outputs = panels[0, q], panels[1, q]
            for p in range(first, min(P, first + chunk), R):
                if p + R <= P and o + width <= total:
                    place = n * numbers + o
                    for k in range(0, K, SHORT):
                        stop, panel = min(K, k + SHORT), q * K * width
                        tile_of(V, flat, n * pixels, row, p, cell[q], k, stop, weights, panel, width, result, place, out, b, q * width, k)
                else:
                    for k in range(0, K, SHORT):
                        stop, panel = min(K, k + SHORT), q * K * width
                        tile_of(V, flat, n * pixels, row[p:], 0, cell[q], k, stop, weights, panel, width, part, 0, starts, b, q * width, k)
                    for r in range(min(R, P - p)):
                        place = n * numbers + out[p + r] + o
                        for k in range(outputs):
                            result[place + k] = part[r * width + k]


@loop
def weight_gradient(lo, hi, x, row, P, cell, K, gy, panels, V, chunk, parts, gw):
    """The gradient of the weight in `parts` sums: `x (images, pixels*C), gy (images, P*O) -> gw (parts, panels, K and some more, width)`.

    Parts and panels are shared out; the reduction over the positions of all images goes in chunks of positions.
    """
    images, pixels = x.shape
    _, Q, rows, width = gw.shape
    R, numbers = rows_of(V), gy.shape[1]
    O, chunks = numbers // P, (P + chunk - 1) // chunk
    flat, upstream, result = x.reshape(x.size), gy.reshape(gy.size), gw.reshape(gw.size)
    out, zeros = np.arange(rows) * width, np.zeros(width, x.dtype)
    for unit in range(lo, hi):
        part, q = unit // Q, unit % Q
        begin, end = part * images * chunks // parts, (part + 1) * images * chunks // parts
        for item in range(begin, end):
            n, p = item // chunks, item % chunks * chunk
            for k in range(0, K, R):
                place, stop, source = (part * Q + q) * rows * width, min(P, p + chunk), n * numbers + panels[0, q]
                more = 1 if item > begin else 0
                tile_of(V, flat, n * pixels, cell[q], k, row, p, stop, upstream, source, O, result, place, out, zeros, 0, more)


@loop
def scatter(lo, hi, z, row, P, cell, gx):
    """gx[n, row[p] + cell[k] + c] += z[n, p, k, c]: the adjoint of gathering, `z (images, P, runs, C) -> gx (images, numbers)`; images."""
    _, _, runs, C = z.shape
    for n in range(lo, hi):
        image = gx[n]
        image[:] = 0
        for p in range(P):
            for k in range(runs):
                pixels, part = image[row[p] + cell[k] :], z[n, p, k]
                for c in range(C):
                    pixels[c] += part[c]


# ---- What is gathered from ---------------------------------------------------------------------------------------------------------------


@loop
def pad(lo, hi, x, strides, low, C, image):
    """Images with their channels last and zeros around: `x (numbers) -> image (N, D, H, W*C)`; the lines (n, d, h) are shared out.

    `strides (2, 5)` holds the sizes of the image without zeros along n, d, h, w, c, and numbers from one to the next; `low (3)` the zeros.
    """
    _, D, H, L = image.shape
    first, pixels, hop, step_ = low[2], strides[0, 3], strides[1, 3], strides[1, 4]
    for unit in range(lo, hi):
        n, d, h = unit // (D * H), unit // H % D - low[0], unit % H - low[1]
        line = image[n, d + low[0], h + low[1]]
        if d < 0 or d >= strides[0, 1] or h < 0 or h >= strides[0, 2]:
            line[:] = 0
            continue
        line[: first * C] = 0
        line[(first + pixels) * C : L] = 0
        source, target = x[n * strides[1, 0] + d * strides[1, 1] + h * strides[1, 2] :], line[first * C : (first + pixels) * C]
        if step_ == 1 and hop == C:
            for w in range(target.size):
                target[w] = source[w]
        else:
            for w in range(pixels):
                for c in range(C):
                    target[w * C + c] = source[w * hop + c * step_]


@loop
def pack(lo, hi, w, offset, hop, group, O, p):
    """The weight in panels: p[q, k, o] = w[g*group + offset[k] + (first + o)*hop] for the outputs of panel q, which begins at `first`.

    `w (numbers) -> p (panels, K, width)`, zero behind the last output; blocks of k are shared out. A group g has ceil(O / width) panels.
    """
    K, width, each = offset.size, p.shape[2], (O + p.shape[2] - 1) // p.shape[2]
    blocks = (K + BLOCK - 1) // BLOCK
    for unit in range(lo, hi):
        q, start = unit // blocks, unit % blocks * BLOCK
        first, stop = q % each * width, min(K, start + BLOCK)
        rows, outputs = p[q, start:stop], min(width, O - first)
        if outputs < width:
            rows[:] = 0
        for o in range(outputs):
            source = w[q // each * group + (first + o) * hop :]
            for k in range(start, stop):
                rows[k - start, o] = source[offset[k]]


@loop
def unpack(lo, hi, p, offset, hop, group, O, w):
    """The inverse of `pack`, of a weight in several sums: `p (sums, panels, K and some more, width) -> w (numbers)`; p is written over."""
    K, width, each = offset.size, p.shape[3], (O + p.shape[3] - 1) // p.shape[3]
    blocks = (K + BLOCK - 1) // BLOCK
    for unit in range(lo, hi):
        q, start = unit // blocks, unit % blocks * BLOCK
        first, stop = q % each * width, min(K, start + BLOCK)
        rows = p[0, q, start:stop].reshape((stop - start) * width)
        for part in range(1, p.shape[0]):
            more = p[part, q, start:stop].reshape((stop - start) * width)
            for k in range(rows.size):
                rows[k] += more[k]
        for o in range(min(width, O - first)):
            target = w[q // each * group + (first + o) * hop :]
            for k in range(start, stop):
                target[offset[k]] = rows[(k - start) * width + o]
