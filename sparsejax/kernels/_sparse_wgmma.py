"""The sparse instruction of Hopper's tensor cores: the only file that uses private JAX APIs.

Import it where ImportError is caught: private APIs may change between releases.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import fragmented_array, mma_utils, utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

# The accumulator registers in the order of the instruction: one value each.
_SUM: Any = plgpu.Layout._WGMMA_ACC_32BIT
_inline: Any = plgpu.inline_mgpu


def zeros(shape: tuple[int, int]) -> Any:
    """A zero accumulator, before `wgmma`."""

    @_inline(return_type=plgpu.ShapeDtypeStruct(shape, jnp.dtype("float32"), layout=_SUM))
    def make(_):
        zero = arith.constant(ir.F32Type.get(), 0.0)
        total = fragmented_array.FragmentedArray.splat(zero, shape, layout=_SUM.to_mgpu())
        return fragmented_array.optimization_barrier(total)

    return make()


def wgmma(total: Any, values: Any, x: Any, metadata: Any, tiling: Any) -> Any:
    """`total + A x^T` for a 2:4 matrix A with 128 columns; starts it and does not wait.

    Wait before the next call: its metadata may be loaded into registers that this one still reads.

    Args:
      total: `(m, n)`, m a multiple of 64, n a multiple of 8 up to 256, from here or `zeros`.
      values: A without its zeros in shared memory, `(m, 64)`.
      x: Dense rows in shared memory, `(n, 128)`.
      metadata: Words of 64 rows of A, `(m / 64, 256)`: for two of each four lanes, those of four
        instructions.
      tiling: Transforms of `values` and `x`: 8 rows of 128 bytes, swizzled.
    """
    rows, count = total.shape
    name = {"bfloat16": "bf16", "float16": "f16"}[jnp.dtype(values.dtype).name]

    @_inline(
        arg_types=(_SUM, plgpu.RefType(tiling), plgpu.RefType(tiling), plgpu.RefType()),
        return_type=plgpu.ShapeDtypeStruct(total.shape, jnp.dtype("float32"), layout=_SUM),
    )
    def multiply(_, total, values, x, metadata):
        # Both operands store eight rows of 128 bytes contiguously; one instruction multiplies 16
        # values of A (32 bytes) with 32 of x (64 bytes, so that two instructions share 128).
        how: Any = {"swizzle": 128, "logical_k_major": False}
        (a, _), (a_part, _), _ = mma_utils.create_descriptor(values, group_size=(64, 64), **how)
        (b, _), (_, b_half), _ = mma_utils.create_descriptor(x, group_size=(count, 64), **how)
        words = [_words(metadata, part) for part in range(rows // 64)]
        _asm("wgmma.fence.sync.aligned;")
        registers = total.registers.copy()
        for part in range(rows // 64):
            part_registers = registers[part : part + 1]
            for s in range(4):
                registers[part : part + 1] = part_registers = _instruction(
                    part_registers,
                    _advanced(a, part * a_part + 32 * s),
                    _advanced(b, s // 2 * b_half + 64 * (s % 2)),
                    words[part][s],
                    f"wgmma.mma_async.sp.sync.aligned.m64n{count}k32.f32.{name}.{name}",
                )
        _asm("wgmma.commit_group.sync.aligned;")
        return fragmented_array.FragmentedArray(
            _registers=registers, _layout=total.layout, _is_signed=None
        )

    return multiply(total, values, x, metadata)


def finished(total: Any) -> Any:
    """The accumulator after all products are complete, in the usual accumulator layout."""

    @_inline(
        arg_types=(_SUM,),
        return_type=plgpu.ShapeDtypeStruct(
            total.shape, jnp.dtype("float32"), layout=plgpu.Layout.WGMMA
        ),
    )
    def wait(_, total):
        _asm("wgmma.wait_group.sync.aligned 0;")
        # So that the compiler does not read registers earlier.
        total = fragmented_array.optimization_barrier(total)
        return total.to_layout(plgpu.Layout.WGMMA.to_mgpu())

    return wait(total)


def _words(metadata: Any, part: int) -> list[Any]:
    """The metadata words of this thread for four instructions."""
    i32 = ir.IntegerType.get_signless(32)

    def c(number):
        return arith.constant(i32, number)

    thread = arith.remui(utils.thread_idx(), c(128))
    pair = arith.addi(arith.muli(arith.divui(thread, c(4)), c(2)), arith.remui(thread, c(2)))
    first = arith.addi(arith.muli(pair, c(4)), c(256 * part))
    address = utils.getelementptr(utils.memref_ptr(metadata), [first], i32)
    four = llvm.load(ir.VectorType.get((4,), i32), address, alignment=16)
    words = [llvm.extractelement(four, c(s)) for s in range(4)]
    # Read before the following fence.
    return [_asm("", [word], "=r,0", i32) for word in words]


def _instruction(registers: Any, a: Any, b: Any, words: Any, name: str) -> Any:
    """One sparse product; its operands are the accumulator, both tiles, the words, and constants.

    The constants: lanes 0 and 1 of four supply the words; accumulate; neither operand is negated;
    both have their contracted axis last.
    """
    count, kind = registers.size, registers.flat[0].type
    sums = ", ".join(f"${i}" for i in range(count))
    a_, b_, words_ = (f"${2 * count + i}" for i in range(3))
    outputs = _asm(
        f"{name} {{{sums}}}, {a_}, {b_}, {words_}, 0, 1, 1, 1, 0, 0;",
        [*registers.flat, a, b, words],
        ",".join(["=f"] * count + [str(i) for i in range(count)] + ["l", "l", "r"]),
        llvm.StructType.get_literal([kind] * count),
    )
    new = registers.copy()
    new.flat[:] = [llvm.extractvalue(kind, outputs, [i]) for i in range(count)]
    return new


def _advanced(descriptor: Any, bytes_: int) -> Any:
    """A descriptor advanced by an offset."""
    if not bytes_:
        return descriptor
    step = arith.constant(ir.IntegerType.get_signless(64), mma_utils.encode_addr(bytes_))
    return arith.addi(descriptor, step)


def _asm(code: str, operands: Any = (), constraints: str = "", kind: Any = None) -> Any:
    kind = ir.Type.parse("!llvm.void") if kind is None else kind
    return llvm.inline_asm(
        kind, list(operands), code, constraints, asm_dialect=0, has_side_effects=True
    )
