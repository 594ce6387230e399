"""Memory for large results on the host, kept for the next when a tensor is gone.

The system hands out fresh pages, which take longer to be written for the first time than a layer
takes to be computed, and the C library gives large blocks back to it.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

# Bytes from which memory is kept, and those that are kept at most.
LARGE, MOST = 4 << 20, 64 << 20

Block = NDArray[np.uint8]

# Blocks that nobody uses, by size; sizes in the order of their last use. Without a lock, which
# a tensor that goes while it is held would wait for: dictionaries and queues are whole at any time.
_free: OrderedDict[int, deque[Block]] = OrderedDict()


def storage(size: int) -> torch.UntypedStorage:
    """Return ``size`` bytes, unfilled."""
    block = None
    with suppress(KeyError, IndexError):
        block = _free[size].pop()
    if block is None:
        # From so many bytes on NumPy asks the system for large pages; torch does not.
        block = np.empty(size, np.uint8)
    lent = block[:]
    weakref.finalize(lent, _back, block).atexit = False
    found: torch.UntypedStorage = torch.from_numpy(lent).untyped_storage()
    return found


def _back(block: Block) -> None:
    """Take a block back, and let go of those used longest ago that are too many."""
    _free.setdefault(block.size, deque()).append(block)
    with suppress(KeyError, IndexError, RuntimeError):
        _free.move_to_end(block.size)
        while kept() > MOST:
            oldest = next(iter(_free))
            if _free[oldest]:
                _free[oldest].popleft()
            else:
                del _free[oldest]


def kept() -> int:
    """Return the bytes that are kept."""
    return sum(size * len(blocks) for size, blocks in list(_free.items()))
