"""The tile: some rows and some vector registers of a matrix product, whose numbers stay in registers while the sum runs.

    y[r, o]  =  (y or b)[r, o] + sum over k  of  x[row[r] + cell[k]] * w[place[k] + o]        o the numbers of V registers

A number of x meets a register of w at every k: one fused multiply-add per row and register, which is as fast as a processor can be. Where
the numbers are is in tables of offsets, so that neither factor has to be written down as a matrix. Groups of G inputs and as many
outputs may share a register.
"""

import numpy as np

from cnn425.kernels.box import REGISTER
from cnn425.kernels.machine_code import CAPABILITY
from cnn425.kernels.threads import machine_step, step

SHORT = 48  # products of a sum: long sums are made of short ones, whose rounding errors are small, and whose numbers stay in the cache
ROWS = 12  # no tile has more
MANY = CAPABILITY == "AVX512"  # registers, 32 of REGISTER bytes; other processors have a quarter of that, 16 of 32 bytes or 32 of 16
WIDEST = (4, 2, 1) if MANY else (1, 1, 1)  # registers beside one another in a tile: of large groups, of one channel each, of small ones
GROUPS = (0, 1, 2, 4, 8)  # of a GROUP
GROUP, TURNED = 0, 0  # of a `Loop`: inputs of groups that share a register, 0 for large groups; whether they are rows of a tile


def _tile():
    """The tile in machine code: one fused multiply-add per row, register and k."""
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    names = ("x", "base", "row", "p", "cell", "k", "stop", "w", "panel", "place", "y", "first", "out", "b", "bias", "add")

    @intrinsic(prefer_literal=True)
    def tile(typing, x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, R, V, G, turned):
        """See `tile` below."""
        if not all(isinstance(t, types.IntegerLiteral) for t in (R, V, G, turned)):
            return None
        registers, group, word = range(V.literal_value), G.literal_value, ir.IntType(64)
        inside, members = (1, max(group, 1)) if turned.literal_value else (max(group, 1), 1)  # inputs of a k, and of a row
        rows = range(R.literal_value * members)
        lanes, align = REGISTER // (x.dtype.bitwidth // 8), x.dtype.bitwidth // 8

        def generate(context, builder, signature, values):
            numbers = dict(zip(names, values, strict=False))
            arrays = {"x": 0, "row": 2, "cell": 4, "w": 7, "place": 9, "y": 10, "out": 12, "b": 13}
            data = {name: make_array(signature.args[i])(context, builder, values[i]).data for name, i in arrays.items()}
            number = context.get_data_type(x.dtype)
            vector = ir.VectorType(number, lanes)
            zero, same = ir.Constant(vector, [0.0] * lanes), ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            fma = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, fma, f"llvm.fma.v{lanes}f{x.dtype.bitwidth}")

            def at(name, *offsets):
                place = offsets[0]
                for offset in offsets[1:]:
                    place = builder.add(place, offset)
                return builder.gep(data[name], [place])

            def load(place):
                return builder.load(builder.bitcast(place, vector.as_pointer()), align=align)

            def spread(place):
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), builder.load(place), word(0))
                return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), same)

            def member(shown, i):
                lane = [lane // group * group + i for lane in range(lanes)]
                return builder.shuffle_vector(shown, shown, ir.Constant(ir.VectorType(ir.IntType(32), lanes), lane)) if group > 1 else shown

            starts = [at("x", numbers["base"], builder.load(at("row", numbers["p"], word(r)))) for r in range(R.literal_value)]
            totals = [[cgutils.alloca_once_value(builder, zero) for _ in registers] for _ in rows]
            for total in (total for row in totals for total in row):
                builder.store(zero, total)
            with cgutils.for_range_slice(builder, numbers["k"], numbers["stop"], word(1), word) as (k, _):
                offset, weights = builder.load(at("cell", k)), builder.add(numbers["panel"], builder.load(at("place", k)))
                factors = [[load(at("w", weights, word((i * len(registers) + v) * lanes))) for v in registers] for i in range(inside)]
                for r in rows:
                    pixel = builder.gep(starts[r // members], [offset])
                    one = None if group else spread(pixel)
                    for v in registers:
                        shown = load(builder.gep(pixel, [word(v * lanes)])) if group else one
                        for i in range(inside):
                            factor = member(shown, r % members + i) if group else shown
                            builder.store(builder.call(fma, [factor, factors[i][v], builder.load(totals[r][v])]), totals[r][v])
                end = builder.block
            rolled = builder.module.add_metadata(["llvm.loop.unroll.disable"])  # unrolled, as on AMD's Zen 4, it runs out of registers
            loop_id = builder.module.add_metadata([rolled])
            loop_id.operands = (loop_id, rolled)  # LLVM knows a loop by metadata that names itself
            end.terminator.set_metadata("llvm.loop", loop_id)
            targets = [
                builder.add(numbers["first"], builder.load(at("out", builder.mul(numbers["p"], word(members)), word(r)))) for r in rows
            ]

            def finish(start):
                found = [[builder.fadd(builder.load(totals[r][v]), start(r, v)) for v in registers] for r in rows]
                for r in rows:
                    for v in registers:
                        place = builder.bitcast(at("y", targets[r], word(v * lanes)), vector.as_pointer())
                        builder.store(found[r][v], place, align=align)

            with builder.if_else(cgutils.is_true(builder, numbers["add"])) as (goes_on, begins):
                with goes_on:
                    finish(lambda r, v: load(at("y", targets[r], word(v * lanes))))
                with begins:
                    finish(lambda r, v: load(at("b", numbers["bias"], word(v * lanes))))
            return context.get_dummy_value()

        i = types.intp
        return types.void(x, i, row, i, cell, i, i, w, i, place, y, i, out, b, i, i, R, V, G, turned), generate

    return tile


@machine_step(_tile)
def tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, R, V, G, turned):
    """y[first + out[p + r] + o] = (y or b[bias + o]) + sum over k to stop - 1 of x[base + row[p + r] + cell[k]] * w[panel + place[k] + o].

    For R rows r and the o of V registers; with `add` the sum is added to what `y` holds. Rows that write to one place write the same there.
    With G, o sees the inputs i of its group: the sum is over k and i of x[base + row[p + r] + cell[k] + o//G*G + i] * w[panel + place[k] +
    i*width + o], or if it is `turned`, there is a row (r, i) for each i, and one w for them all.
    """
    width, inputs, found = V * REGISTER // x.itemsize, max(G, 1), []
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


@step
def rows_of(V):
    """The rows of a tile of V registers: as many as registers are left for."""
    return 8 if MANY and V < 4 else 6


@step
def tile_of(V, x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add):
    """The tile of V registers."""
    if not MANY:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 6, 1, 0, 0)
    elif V == 4:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 6, 4, 0, 0)
    elif V == 3:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 8, 3, 0, 0)
    elif V == 2:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 8, 2, 0, 0)
    else:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 8, 1, 0, 0)


@step
def rows_of_channels(V):
    """The rows of a depthwise tile, which suit kernels of 9, 25 and 49 cells."""
    return 5


@step
def tile_of_channels(V, x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add):
    """The tile of V registers of a depthwise convolution."""
    if V == 2:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 5, 2, 1, 0)
    else:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 5, 1, 1, 0)


@step
def rows_of_groups(V):
    """The rows of a tile of small groups."""
    return 6 if not TURNED else 3 if MANY else 1


@step
def tile_of_groups(V, x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add):
    """The tile of one register of small groups."""
    if not TURNED:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 6, 1, GROUP, TURNED)
    elif MANY:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 3, 1, GROUP, TURNED)
    else:
        tile(x, base, row, p, cell, k, stop, w, panel, place, y, first, out, b, bias, add, 1, 1, GROUP, TURNED)
