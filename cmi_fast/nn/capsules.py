"""Interests by dynamic routing, as MIND and ComiRec-DR extract them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmi_fast import functional
from cmi_fast.nn.interests import PARITIES
from cmi_fast.ops.checks import check_choice, check_places
from cmi_fast.reference.sequences import places

MAPS = ("shared", "interest", "position")


class CapsuleRouting(nn.Module):
    """MIND's extractor (``maps="shared"``) and ComiRec-DR's (``maps="position"``).

    - **Softmax**: over the interests, as in both papers and in ComiRec's TensorFlow code. (Its PyTorch ports take it
      over the sequence, padding included.)
    - **Gradient**: through the mapped items of the last iteration alone, for any number of iterations; the routing
      weights are constants, the logits are not trained.
    - **Departures**: MIND's random logits are drawn again at every training step, but fixed in evaluation: a function
      of ``seed`` and of the item's place, so that a user's interests never depend on chance or on the batch. The
      originals draw them then, too.

    Args:
        interests: K.
        dim: d.
        maps: ``"shared"``: one map for all items and interests; ``"interest"``: one an interest; ``"position"``: one
            for each place of the sequence and interest.
        max_length: P, the longest sequence; needed by all but ``maps="interest"``.
        iterations: of the routing.
        dynamic: of a sequence with n items only the first max(1, min(K, floor(log2 n))) interests take part (MIND); the
            others are zeros.
        parity: with a shared map, ``"paper"`` has no bias and logits N(0, 1), ``"tf_original"`` (ComiRec's MIND) a bias
            and logits N(0, 1) cut at two standard deviations; maps by position start as N(0, 1/d), or in
            ``"tf_original"`` as N(0, 1). Logits of the other maps are zeros in both.
        seed: of the logits in evaluation.
        backend: as in :func:`cmi_fast.functional.capsule_routing`.
    """

    maps: nn.Parameter
    fixed_logits: Tensor | None

    def __init__(
        self,
        interests: int,
        dim: int,
        *,
        maps: str = "shared",
        max_length: int | None = None,
        iterations: int = 3,
        dynamic: bool = False,
        parity: str = "paper",
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("maps", maps, MAPS)
        check_choice("parity", parity, PARITIES)
        if max_length is None and maps != "interest":
            raise ValueError(f"max_length: expected a number with maps={maps!r}, found None")
        leading = {"shared": (), "interest": (interests,), "position": (max_length or 0, interests)}[maps]
        self.maps = nn.Parameter(torch.empty(*leading, dim, dim))
        has_bias = maps == "shared" and parity == "tf_original"
        self.bias = nn.Parameter(torch.empty(dim)) if has_bias else None
        self.interests = interests
        self.iterations = iterations
        self.dynamic = dynamic
        self.parity = parity
        self.backend = backend
        fixed = None
        if maps == "shared":
            fixed = self._draw(torch.empty(max_length or 0, interests), torch.Generator().manual_seed(seed))
        self.register_buffer("fixed_logits", fixed, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        dim = self.maps.shape[-1]
        nn.init.normal_(self.maps, std=1.0 if self.maps.dim() == 4 and self.parity == "tf_original" else dim**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, items: Tensor, lengths: Tensor | None = None, *, offsets: Tensor | None = None) -> Tensor:
        """Interests [B, K, d]. Raises ValueError where a sequence is longer than ``max_length``."""
        return functional.capsule_routing(
            items,
            self.maps,
            self.interests,
            lengths,
            bias=self.bias,
            logits=self._logits(items, offsets),
            active=self._active(_count(items, lengths, offsets)) if self.dynamic else None,
            iterations=self.iterations,
            offsets=offsets,
            backend=self.backend,
        )

    def _draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.parity == "tf_original":
            return nn.init.trunc_normal_(logits, generator=generator)
        return nn.init.normal_(logits, generator=generator)

    def _logits(self, items: Tensor, offsets: Tensor | None) -> Tensor | None:
        if self.fixed_logits is None:
            return None
        check_places("max_length", len(self.fixed_logits), items, offsets)
        if self.training:
            return self._draw(items.new_empty(*items.shape[:-1], self.interests))
        place = slice(items.shape[1]) if offsets is None else places(offsets, len(items))[1]
        logits = self.fixed_logits[place].to(items.dtype)
        return logits if offsets is not None else logits.expand(len(items), -1, -1)

    def takes_part(self, lengths: Tensor) -> Tensor:
        """Which interests take part for sequences of ``lengths`` [B], bool [B, K]: all, unless ``dynamic``."""
        active = self._active(lengths) if self.dynamic else torch.full_like(lengths, self.interests)
        return torch.arange(self.interests, device=lengths.device) < active[:, None]

    def _active(self, lengths: Tensor) -> Tensor:
        # n = f 2^e with 1/2 <= f < 1: floor(log2 n) = e - 1, exactly.
        return (torch.frexp(lengths.double()).exponent - 1).clamp(1, self.interests)

    def extra_repr(self) -> str:
        kind = MAPS[(2, 3, 4).index(self.maps.dim())]
        return (
            f"interests={self.interests}, dim={self.maps.shape[-1]}, maps={kind!r}, iterations={self.iterations}, "
            f"dynamic={self.dynamic}, parity={self.parity!r}"
        )


def _count(items: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    if offsets is not None:
        return offsets.diff()
    return torch.full((len(items),), items.shape[1], device=items.device) if lengths is None else lengths
