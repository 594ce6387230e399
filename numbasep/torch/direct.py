"""When an operator is a function only: torch has nothing to do before or after it.

To go through torch's dispatcher, twice without gradients, takes longer than a small layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.nn import Parameter

# Whether something of torch's looks at each operator, and would miss one; and what torch dispatches
# dense tensors in host memory by. All have no public names.
_WATCHES: list[Callable[[], Any]] = []
_PLAIN: set[int] = set()


def _keys(tensor: Tensor) -> int:
    """Return what torch dispatches a tensor by: zeros without memory, say, or one that stands for
    a batch, look like any other."""
    return int(torch._C._dispatch_keys(tensor).raw_repr())


try:
    _PLAIN.add(_keys(torch.ones(1)))
    with torch.inference_mode():
        _PLAIN.add(_keys(torch.ones(1)))
    _WATCHES = [
        torch._C._len_torch_dispatch_stack,
        torch._C._len_torch_function_stack,
        torch._C._functorch.peek_interpreter_stack,
        torch._C._get_tracing_state,
        lambda: forward_ad._current_level >= 0,
        lambda: profiler._is_profiler_enabled,
    ]
    _known = not any(watches() for watches in _WATCHES)
except AttributeError:
    # Another version of torch: every operator goes through it.
    _known = False


def direct(arguments: tuple[Any, ...]) -> bool:
    """Return whether to call an operator's function at once gives what torch would give.

    Where gradients are asked for (``learns``), as the forward of a ``torch.autograd.Function``.
    """
    if torch.compiler.is_compiling() or not _known:
        return False
    for one in arguments:
        if isinstance(one, Tensor) and (
            type(one) not in (Tensor, Parameter) or _keys(one) not in _PLAIN
        ):
            return False
    return not any(watches() for watches in _WATCHES)


def learns(arguments: tuple[Any, ...]) -> bool:
    """Return whether gradients to any of the arguments are asked for."""
    return torch.is_grad_enabled() and any(
        isinstance(one, Tensor) and one.requires_grad for one in arguments
    )
