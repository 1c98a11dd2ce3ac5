"""The mean of neighbouring checkpoints: it wobbles less from epoch to epoch than each of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cmi_fast.training.checkpoint import Tensors

PREFIX = "recent"


class RecentWeights:
    """The weights that ``model`` had at the ends of its last ``count`` epochs; with 1 nothing is kept or copied."""

    def __init__(self, model: torch.nn.Module, count: int) -> None:
        self._model = model
        self._kept: deque[Tensors] = deque(maxlen=count)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """At the end of an epoch: within, the model has the mean weights of the last epochs, this one among them."""
        if self._kept.maxlen == 1:
            yield
            return
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._kept.append(own)
        mean = {name: torch.stack([kept[name] for kept in self._kept]).mean(0) for name in own}
        self._model.load_state_dict(mean)
        yield
        self._model.load_state_dict(own)

    def tensors(self) -> Tensors:
        """What :meth:`restore` needs to go on, by names that begin with ``recent.``."""
        return {
            f"{PREFIX}.{number}.{name}": value for number, kept in enumerate(self._kept) for name, value in kept.items()
        }

    def restore(self, tensors: Tensors) -> None:
        """Go on from those of ``tensors`` that :meth:`tensors` gave."""
        found: dict[int, Tensors] = {}
        for key, value in tensors.items():
            prefix, _, rest = key.partition(".")
            if prefix == PREFIX:
                number, _, name = rest.partition(".")
                found.setdefault(int(number), {})[name] = value
        self._kept.extend(found[number] for number in sorted(found))
