import numpy as np
from numpy.typing import NDArray

from cmi_fast.data import draws

class Draws(draws.Draws): ...

def distinct(
    history: NDArray[np.int64],
    lengths: NDArray[np.int64],
    positives: NDArray[np.int64],
    negatives: NDArray[np.int64],
    num_items: int,
) -> tuple[NDArray[np.int64], ...]: ...
