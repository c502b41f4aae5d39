"""Stage 1 of TPSNet: its loss by plain loops, when labels are repaired, and what it leaves alone."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adapters.offline.prompts import DomainPrompts, Prompted, Repair, Template, fit_prompts

CLASSES, TEMPERATURE = 3, 0.3
STILL = 1e-12  # a rate that moves nothing


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features() -> list[Tensor]:
    return [normalize(draws(n, 6, seed=seed), dim=1) for n, seed in ((13, 1), (9, 2))]


def labels() -> list[Tensor]:
    return [torch.arange(13) % CLASSES, torch.arange(9) // 3]


def made(encode: nn.Module | None = None) -> Template:
    """Prompts of four places, two of them learnt."""
    inner = draws(4 * 5, 6, seed=3)
    return Template(
        draws(4, 5, seed=4),
        slice(1, 3),
        (lambda embeds: embeds.flatten(1) @ inner) if encode is None else encode,
    )


def fitted(rate: float = STILL, epochs: int = 3, batch: int = 64, repair: Repair = "none") -> Prompted:
    return fit_prompts(
        features(), labels(), made(), CLASSES, epochs=epochs, batch=batch, rate=rate,
        temperature=TEMPERATURE, repair=repair, seed=5,
    )  # fmt: skip


def slow_loss(v: Tensor, t: Tensor, named: Tensor, clustered: Tensor) -> float:
    """Both directions by loops: pictures -> prompts by `named`, prompts -> pictures by `clustered`."""

    def fit(i: int, c: int) -> float:
        return math.exp(float(v[i] @ t[c]) / TEMPERATURE)

    pictures, prompts = range(len(v)), range(len(t))
    forth = [math.log(fit(i, int(named[i])) / sum(fit(i, c) for c in prompts)) for i in pictures]
    back = []
    for c in prompts:
        own = [i for i in pictures if clustered[i] == c]
        if own:
            total = sum(fit(i, c) for i in pictures)
            back.append(sum(math.log(fit(i, c) / total) for i in own) / len(own))
    return -sum(forth) / len(forth) - sum(back) / len(back)


def test_whole_batches_give_the_mean_loss_of_both_domains() -> None:
    prompts = DomainPrompts(made(), CLASSES, seed=5)
    with torch.no_grad():
        expected = [slow_loss(v, prompts(d), y, y) for d, (v, y) in enumerate(zip(features(), labels()))]
    assert fitted().losses == pytest.approx([sum(expected) / 2] * 3, rel=1e-5)


def test_from_a_third_of_the_epochs_on_only_pictures_ask_by_repaired_labels() -> None:
    text = fitted().text
    before, after = [], []
    for v, t, y in zip(features(), text, labels()):
        best = (v @ t.T).argmax(1)
        assert set(best.tolist()) == {0, 1, 2}, "else the guard of empty classes would have a part in it"
        assert not torch.equal(best, y)
        before.append(slow_loss(v, t, y, y))
        after.append(slow_loss(v, t, best, y))
    expected = [sum(before) / 2] * 2 + [sum(after) / 2] * 4
    assert fitted(epochs=6, repair="argmax").losses == pytest.approx(expected, rel=1e-5)
    assert abs(expected[0] - expected[-1]) > 1e-3, "far more than what is compared with"


def test_labels_at_the_end_are_those_of_the_learnt_prompts() -> None:
    found = fitted(rate=0.05, repair="argmax")
    for v, t, y in zip(features(), found.text, found.labels):
        assert torch.equal(y, (v @ t.T).argmax(1))
    assert all(torch.equal(own, y) for own, y in zip(fitted(rate=0.05).labels, labels()))


def test_prompts_learn_and_the_text_is_of_the_learnt_context() -> None:
    found = fitted(rate=0.05, epochs=30, batch=5)
    assert found.losses[-1] < found.losses[0] - 0.3
    prompts = DomainPrompts(made(), CLASSES, seed=0)
    with torch.no_grad():
        prompts.context.copy_(found.context)
        assert torch.equal(torch.stack([prompts(d) for d in range(2)]), found.text)
    assert found.text.norm(dim=2).flatten().tolist() == pytest.approx([1] * 6, abs=1e-6)


def test_the_same_seed_gives_the_same_bits() -> None:
    assert torch.equal(fitted(rate=0.05, batch=5).context, fitted(rate=0.05, batch=5).context)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(20, 6).requires_grad_(False)

    def forward(self, embeds: Tensor) -> Tensor:
        found: Tensor = self.layer(embeds.flatten(1))
        return found


def test_a_frozen_tower_gets_no_gradient_and_inputs_stay_as_they_were() -> None:
    tower, y = Tower(), labels()
    before = tower.layer.weight.clone()
    fit_prompts(
        features(), y, made(tower), CLASSES, epochs=2, batch=5, rate=0.05, temperature=TEMPERATURE,
        repair="argmax", seed=5,
    )  # fmt: skip
    assert tower.layer.weight.grad is None and torch.equal(tower.layer.weight, before)
    assert all(torch.equal(now, then) for now, then in zip(y, labels()))


def test_progress_counts_epochs() -> None:
    seen: list[int] = []
    fit_prompts(
        features(), labels(), made(), CLASSES, epochs=3, batch=5, rate=0.01, temperature=TEMPERATURE,
        repair="none", seed=5, progress=seen.append,
    )  # fmt: skip
    assert seen == [1, 2, 3]
