"""docs/migrating.md: its snippets as they stand there, and what it says of the numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cmi_fast
from cmi_fast.nn import hard_read_out

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
(MASK, MIND, RECHUB_DR, RECHUB_SA, ATTENTION, PORT_DR, FULL, SAMPLED, LIGHTLY) = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)


def run(snippet: str, **names: Any) -> dict[str, Any]:
    """What the snippet defines, given ``names``."""
    names |= {"cmi_fast": cmi_fast, "F": F, "nn": nn, "torch": torch}
    exec(snippet, names)
    return names


def make_mask(left: bool = False) -> Tensor:
    right = (torch.arange(20) < torch.tensor([20, 1, 7])[:, None]).long()
    return right.flip(1) if left else right


def rechub(name: str, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """torch-rechub's model with a history of 20 and 4 interests of 16 dimensions, and a batch for it."""
    features = pytest.importorskip("torch_rechub.basic.features")
    models = pytest.importorskip("torch_rechub.models.matching")
    item = {"vocab_size": 50, "embed_dim": 16}
    model = getattr(models, name)(
        user_features=[features.SparseFeature("user", vocab_size=9, embed_dim=16)],
        history_features=[features.SequenceFeature("history", pooling="concat", shared_with="item", **item)],
        item_features=[features.SparseFeature("item", **item)],
        neg_item_feature=[features.SequenceFeature("negatives", pooling="concat", shared_with="item", **item)],
        **options,
    )
    torch.manual_seed(0)
    batch = {
        "user": torch.randint(1, 9, (3,)),
        "history": torch.randint(1, 50, (3, 20)) * make_mask(),
        "item": torch.randint(1, 50, (3,)),
        "negatives": torch.randint(1, 50, (3, 5)),
    }
    return model, batch


def test_a_mask_becomes_offsets() -> None:
    items = torch.randn(3, 20, 4)
    for left in (False, True):
        mask = make_mask(left)
        found = run(MASK, items=items, mask=mask)
        assert found["offsets"].tolist() == [0, 20, 21, 28]
        assert torch.equal(found["items"], torch.cat([row[m.bool()] for row, m in zip(items, mask, strict=True)]))


@pytest.mark.parametrize(("name", "snippet"), [("MIND", MIND), ("ComirecDR", RECHUB_DR)], ids=["MIND", "ComirecDR"])
def test_rechub_routing(name: str, snippet: str) -> None:
    assert sum(bool(line) for line in MIND.splitlines()) <= 5
    model, batch = rechub(name, max_length=20)
    run(snippet, model=model)
    scores = model(batch)
    assert scores.shape == (3, 6)
    scores.square().sum().backward()
    assert model.capsule.maps.grad.any()
    model.mode = "user"
    model.eval()
    assert torch.equal(model(batch), model(batch))
    items, mask = torch.randn(3, 20, 16), make_mask()
    if name == "MIND":  # wherever padding lies (maps by position count places from the first valid item)
        shifted = torch.stack([row.roll(20 - n, 0) for row, n in zip(items, mask.sum(1).tolist(), strict=True)])
        torch.testing.assert_close(model.capsule(shifted, make_mask(left=True)), model.capsule(items, mask))


def test_what_is_said_of_rechubs_routing() -> None:
    layers = pytest.importorskip("torch_rechub.basic.layers")
    items = torch.randn(2, 5, 16)
    theirs = layers.CapsuleNetwork(16, 5, bilinear_type=0)
    wider = layers.CapsuleNetwork(16, 9, bilinear_type=0)
    wider.load_state_dict(theirs.state_dict())

    def interests(layer: nn.Module, items: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layer(items, (items.abs().sum(-1) > 0).long())

    padded = F.pad(items, (0, 0, 0, 4))
    # The draw of logits differs between the widths; norms show that capsules shrink.
    assert interests(wider, padded).norm(dim=-1).mean() < 0.9 * interests(theirs, items).norm(dim=-1).mean()
    assert not torch.equal(theirs(items, torch.ones(2, 5)), theirs(items, torch.ones(2, 5)))
    short = layers.CapsuleNetwork(16, 5, bilinear_type=0, routing_times=2)
    assert not short(items, torch.ones(2, 5)).requires_grad
    ours = cmi_fast.nn.CapsuleRouting(4, 16, iterations=2, max_length=9).eval()
    assert ours(items).requires_grad
    torch.testing.assert_close(ours(padded, torch.tensor([5, 5])), ours(items))


def test_rechub_self_attention_gives_the_same_numbers() -> None:
    model, batch = rechub("ComirecSA")
    old, expected = model.multi_interest_sa, model(batch)
    run(RECHUB_SA, model=model)
    model.multi_interest_sa.load_state_dict({"weight": old.W1.T, "queries": old.W2.T})
    torch.testing.assert_close(model(batch), expected)
    assert old.W3.grad is None


def test_ports_of_comirec_and_remi() -> None:
    """Not on PyPI: their attention as a formula."""
    model = nn.Module()
    model.linear1 = nn.Sequential(nn.Linear(16, 64, bias=False), nn.Tanh())
    model.linear2 = nn.Linear(64, 4, bias=False)
    model.position_embedding = nn.Parameter(torch.randn(1, 20, 16))
    mask = make_mask().float()
    item_eb = torch.randn(3, 20, 16) * mask[..., None]
    attention = model.linear2(model.linear1(item_eb + model.position_embedding)).transpose(1, 2)
    attention = attention.masked_fill(mask[:, None] == 0, -(2.0**32) + 1).softmax(-1)
    found = run(ATTENTION, model=model, item_eb=item_eb, mask=mask)
    torch.testing.assert_close(found["user_eb"], attention @ item_eb)
    assert found["layer"].weight is model.linear1[0].weight
    run(PORT_DR, model=model)
    assert model.capsule_network(item_eb, mask, torch.device("cpu")).shape == (3, 4, 16)


def test_losses_of_the_ports() -> None:
    readout, table = torch.randn(3, 16, requires_grad=True), torch.randn(50, 16)
    labels = torch.tensor([4, 0, 49])
    loss = run(FULL, readout=readout, table=table, labels=labels)["loss"]
    expected = F.cross_entropy(readout @ table.T, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, readout)[0] for x in (loss, expected)))
    candidates, frequency = torch.tensor([4, 0, 49, 7, 4]), torch.rand(50) + 0.1
    names = {"candidates": candidates, "targets": torch.tensor([0, 1, 2]), "frequency": frequency}
    loss = run(SAMPLED, readout=readout, table=table, **names)["loss"]
    scores = readout @ table[candidates].T - frequency[candidates].log()
    scores[0, 4] = -torch.inf  # its own item once more
    torch.testing.assert_close(loss, F.cross_entropy(scores, names["targets"]))
    interests, label = torch.randn(3, 4, 16), torch.randn(3, 16)
    best = (interests @ label[..., None]).squeeze(-1).argmax(1)
    assert torch.equal(hard_read_out(interests, label), interests[torch.arange(3), best])


def test_lightly() -> None:
    first, second = torch.randn(6, 8), torch.randn(6, 8)
    loss = run(LIGHTLY, z0=first, z1=second)["loss"]
    try:
        from lightly_peer import lightly_loss

        theirs = lightly_loss()
    except ImportError as error:
        pytest.skip(f"lightly: {error}")
    torch.testing.assert_close(loss, theirs(temperature=0.5)(first, second))
