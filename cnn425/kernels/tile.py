"""The tile: some rows and some vector registers of a matrix product, whose results stay in registers during the sum.

    y[r, o]  =  (y or b)[r, o] + sum over k  of  x[row[r] + cell[k]] * w[place[k] + o]        o the lanes of V registers

At every k a number of x is multiplied by a register of w: one fused multiply-add per row and register, the peak rate of a processor. Tables
of offsets say where the numbers are, so that neither factor has to be written down as a matrix. Groups of G inputs and as many outputs may
share a register.
"""

from functools import cache, reduce

import numpy as np

from cnn425.kernels.box import REGISTER, keep_rolled, spread
from cnn425.kernels.machine_code import CAPABILITY, cases
from cnn425.kernels.threads import machine_step, step

SHORT = 70  # products of a sum, about: long sums are split into short ones, whose rounding errors are small, and whose numbers stay cached
ROWS = 12  # an upper bound
MANY = CAPABILITY == "AVX512"  # 32 registers of REGISTER bytes; other processors have a quarter of that, 16 of 32 bytes or 32 of 16
WIDEST = (4, 2, 1) if MANY else (1, 1, 1)  # most registers per row of a tile: for large groups, for groups of one channel, for small ones
GROUPS = (0, 1, 2, 4, 8)  # inputs of groups that share a register; 0 for large groups


@step
def short(products):
    """The products of each part of a sum of so many: about SHORT, and equally many in all parts but the last."""
    pieces = max(1, (2 * products + SHORT) // (2 * SHORT))
    return max(1, (products + pieces - 1) // pieces)


@cache
def costs():
    """What a register of a tile costs, by the registers per row; measured on Intel (Emerald Rapids) and AMD (Zen 4, one FMA per cycle)."""
    if not MANY:
        return {1: 1.0}
    from llvmlite.binding import get_host_cpu_name

    return {1: 1.05, 2: 1.0, 3: 1.05, 4: 1.0} if get_host_cpu_name() == "znver4" else {1: 1.6, 2: 1.15, 3: 1.05, 4: 1.0}


def registers(outputs, lanes, G):
    """V, the registers per row that compute so many outputs in the least time."""
    return min(range(WIDEST[min(G, 2)], 0, -1), key=lambda v: -(-outputs // (v * lanes)) * v * (1 if G else costs()[v]))


def fits_four(rows):
    """Whether tiles of four rows compute so many in less time than tiles of six: a row takes 1.1 times as long, but fewer are surplus."""
    return 11 * 4 * -(-rows // 4) < 10 * 6 * -(-rows // 6)


@step
def rows_of(V, G, turned):
    """The rows of a tile of V registers: as many as fit into registers; five suit depthwise kernels of 9, 25 and 49 cells."""
    if G == 0:
        return 8 if MANY and V < 4 else 4 if turned and MANY else 6
    if G == 1:
        return 5
    return 6 if not turned else 3 if MANY else 1


def _tile(builder, a):
    """The tile in machine code: one fused multiply-add per row, register and k."""
    for turned in cases(builder, a.turned, (0, 1)):
        for G in cases(builder, a.G, GROUPS):
            for V in cases(builder, a.V, range(1, WIDEST[min(G, 2)] + 1)):
                _sums(builder, a, G, turned, range(V), rows_of(V, G, turned))


def _sums(builder, a, G, turned, registers, R):
    """The instructions of the tile of R rows and so many registers."""
    from llvmlite import ir
    from numba.core import cgutils

    word, lanes, vector = ir.IntType(64), REGISTER // a.size, ir.VectorType(a.number, REGISTER // a.size)
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{8 * a.size}")
    inside, members = (1, max(G, 1)) if turned else (max(G, 1), 1)  # inputs of a k, and of a row

    def at(array, *offsets):
        return builder.gep(array, [reduce(builder.add, offsets)])

    def load(place):
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=a.size)

    def member(shown, i):
        lane = [lane // G * G + i for lane in range(lanes)]
        return builder.shuffle_vector(shown, shown, ir.VectorType(ir.IntType(32), lanes)(lane))

    starts = [at(a.x, a.base, builder.load(at(a.row, a.p, word(r)))) for r in range(R)]
    totals = [[cgutils.alloca_once(builder, vector) for _ in registers] for _ in range(R * members)]
    for total in (total for row in totals for total in row):
        builder.store(vector([0.0] * lanes), total)
    with cgutils.for_range_slice(builder, a.k, a.stop, word(1), word) as (k, _):
        offset, weights = builder.load(at(a.cell, k)), builder.add(a.panel, builder.load(at(a.place, k)))
        factors = [[load(at(a.w, weights, word((i * len(registers) + v) * lanes))) for v in registers] for i in range(inside)]
        for r, row in enumerate(totals):
            pixel = at(starts[r // members], offset)
            for v in registers:
                shown = load(at(pixel, word(v * lanes))) if G else spread(builder, builder.load(pixel), vector)
                for i in range(inside):
                    factor = member(shown, r % members + i) if G > 1 else shown
                    builder.store(builder.call(fma, [factor, factors[i][v], builder.load(row[v])]), row[v])
        end = builder.block
    keep_rolled(builder, end)  # if LLVM unrolled it, as for AMD's Zen 4, sums would not fit into registers
    sums = [(r, v, total) for r, row in enumerate(totals) for v, total in enumerate(row)]
    hops = [builder.load(at(a.out, builder.mul(a.p, word(members)), word(r))) for r in range(len(totals))]
    places = [at(a.y, a.first, hops[r], word(v * lanes)) for r, v, _ in sums]

    def finish(begun):
        found = [builder.fadd(builder.load(total), load(start)) for (_, _, total), start in zip(sums, begun, strict=True)]
        for number, place in zip(found, places, strict=True):
            builder.store(number, builder.bitcast(place, vector.as_pointer()), align=a.size)

    with builder.if_else(cgutils.is_true(builder, a.add)) as (goes_on, begins):
        with goes_on:
            finish(places)
        with begins:
            finish([at(a.b, a.bias, word(v * lanes)) for _, v, _ in sums])


@machine_step(_tile)
def tile(V, x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, G, turned):
    """y[first + out[p + r] + o] = (y or b[bias + o]) + sum over k to stop - 1 of x[base + row[p + r] + cell[k]] * w[panel + place[k] + o].

    For r < `rows_of(V, G, turned)` and the lanes o of V registers, at most WIDEST; with `add` the sum is added to what `y` holds.
    Rows that write to the same place write the same numbers.
    With G, o sees the inputs i of its group: the sum is over k and i of x[base + row[p + r] + cell[k] + o//G*G + i] * w[panel + place[k] +
    i*width + o], or if it is `turned`, there is a row (r, i) for each i, and one w for them all. Without G, 4 registers then have 4 rows.
    """
    R, width, inputs, found = rows_of(V, G, turned), V * REGISTER // x.itemsize, max(G, 1), []
    lane = np.arange(width) // inputs * inputs
    for r in range(R * inputs if turned else R):
        total, start = np.zeros(width, x.dtype), base + row[p + r // inputs if turned else p + r]
        for cell_ in range(k, stop):
            for i in range(1 if turned else inputs):
                pixel, weight = start + cell[cell_], panel + place[cell_] + i * width
                shown = x[pixel + lane + (r % inputs if turned else i)] if G else x[pixel]
                total += shown * w[weight : weight + width]
        to = first + out[(p * inputs if turned else p) + r]
        found.append((to, total + (y[to : to + width] if add else b[bias : bias + width])))
    for to, total in found:
        y[to : to + width] = total
