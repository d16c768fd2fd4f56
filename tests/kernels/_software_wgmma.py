"""What `wgmma.mma_async.sp` does, by the tables of the PTX ISA, lane by lane, in NumPy.

Written from the document alone (sections 9.7.15.6.1 and 9.7.15.6.2.1 and the figure of
`mma.sp.m16n8k32` for .f16 and .bf16), not from the packing that it tests:

- Of every 4 consecutive entries of a row of A two are stored; the metadata has 2 bits for each
  stored entry, which say where of the 4 it stood. The pairs 0b0000, 0b0101, 0b1010 and 0b1111 are
  invalid; the lower index comes first.
- Warp w of the warpgroup gives the metadata of rows 16 w to 16 w + 15.
- Cell [x][y..z] of the figure, "Tk: [m..n]": bits m to n of the word of lane k hold the indices of
  row x, columns y to z. Row x < 8, columns 0 to 15: lane 4 x + 2 i, bits 0 to 15; columns 16 to
  31: lane 4 x + 2 i + 1, bits 0 to 15; row x + 8 the same lanes, bits 16 to 31; i is the selector.
"""

import numpy as np

INVALID = {0b0000, 0b0101, 0b1010, 0b1111}


def expanded(stored, words, selector=0):
    """The dense A of one m64nNk32 instruction.

    Args:
      stored: `(64, 16)`, what shared memory holds.
      words: `(128,)`, the metadata operand of every thread of the warpgroup.
    """
    dense = np.zeros((64, 32), stored.dtype)
    for row in range(64):
        warp, within = divmod(row, 16)
        for group in range(8):
            lane = 4 * (within % 8) + 2 * selector + group // 4
            shift = 16 * (within // 8) + 4 * (group % 4)
            bits = int(words[32 * warp + lane]) >> shift & 0b1111
            assert bits not in INVALID and bits & 3 < bits >> 2
            dense[row, 4 * group + (bits & 3)] = stored[row, 2 * group]
            dense[row, 4 * group + (bits >> 2)] = stored[row, 2 * group + 1]
    return dense


def product(stored, words, b, total, selector=0):
    """`D = A B + D`, with b `(32, N)` and total `(64, N)`."""
    return expanded(stored, words, selector) @ b + total
