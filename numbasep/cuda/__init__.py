"""The CUDA backend. Imported by a call that runs there, never by ``import numbasep``."""

from importlib.util import find_spec

_INSTALL = "install it with pip install 'numbasep[cuda13]' (or [cuda12])"

if find_spec("numba_cuda") is None:
    raise ImportError(
        "numba-cuda is missing, and Numba's own CUDA target, deprecated, lacks what the kernels "
        f"need; {_INSTALL}"
    )
_target = find_spec("numba.cuda")
if _target is None or "numba_cuda" not in (_target.origin or ""):
    raise ImportError(
        "numba.cuda is Numba's deprecated built-in target although numba-cuda is present: its "
        f"import hook did not run (python -S or -I, or a copied environment); {_INSTALL}"
    )
