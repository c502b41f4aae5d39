"""Prompts, assignment and training of TPSNet against slow loops and planted answers."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adapters.offline.assignment import class_means, kmeans, matched, sinkhorn, tied_by_centres
from adapters.offline.prompts import DomainPrompts, Repair, Template, loss_i2t, loss_t2i, repaired
from adapters.offline.tpsnet import Clusters, cluster, fit
from adapters.offline.tpsnet_config import TpsConfig
from core.errors import ConfigError

SMALL = TpsConfig(classes=3, prompt_epochs=6, epochs=4, batch=24, rate=3e-3)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def template(width: int = 8, inner: int = 5) -> Template:
    """Prompts of five places, two of them learnt; the "tower" is a fixed mixture of the places."""
    mixture, out = draws(5, seed=1), draws(inner, width, seed=2)
    return Template(
        draws(5, inner, seed=3),
        slice(2, 4),
        lambda embeds: torch.einsum("s,nse,ed->nd", mixture, embeds, out),
    )


def domains(seed: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Two domains of three kinds; the second has another mean."""
    kinds = 3 * draws(3, 8, seed=seed)
    y = [torch.arange(36) % 3, torch.arange(30) % 3]
    moved = 2 * draws(8, seed=seed + 1)
    x = [kinds[own] + 0.3 * draws(len(own), 8, seed=seed + 2 + d) + d * moved for d, own in enumerate(y)]
    return x, y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)

    def fuse(self, raw: Tensor, phases: Tensor | None) -> Tensor:
        return normalize(raw + self.last(raw), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.tower(x), None)


# Prompts.


def test_losses_equal_loops() -> None:
    v, t = normalize(draws(7, 8), dim=1), normalize(draws(4, 8, seed=1), dim=1)
    y, tau = torch.tensor([0, 0, 2, 2, 2, 0, 2]), 0.2
    total = 0.0
    for i in range(7):
        shares = [math.exp(float(v[i] @ t[c]) / tau) for c in range(4)]
        total -= math.log(shares[int(y[i])] / sum(shares))
    assert float(loss_i2t(v, t, y, tau)) == pytest.approx(total / 7, rel=1e-5)
    total = 0.0
    for c in (0, 2):  # classes 1 and 3 have no picture and no part
        own = [i for i in range(7) if y[i] == c]
        shares = [math.exp(float(v[a] @ t[c]) / tau) for a in range(7)]
        total -= sum(math.log(shares[i] / sum(shares)) for i in own) / len(own)
    assert float(loss_t2i(v, t, y, tau)) == pytest.approx(total / 2, rel=1e-5)


def test_only_the_context_of_the_domain_learns() -> None:
    prompts = DomainPrompts(template(), 3, seed=0)
    text = prompts(1)
    assert text.shape == (3, 8) and text.norm(dim=1).tolist() == pytest.approx([1] * 3)
    text.sum().backward()
    gradient = prompts.context.grad
    assert gradient is not None and not gradient[0].any() and gradient[1].abs().sum() > 0
    assert [name for name, _ in prompts.named_parameters()] == ["context"]


def test_context_stands_in_its_places() -> None:
    own = template()
    prompts = DomainPrompts(own, 3, seed=0)
    embeds = own.embeds.expand(3, -1, -1).clone()
    embeds[:, 2:4] = prompts.context[0].detach()
    assert prompts(0).detach().numpy() == pytest.approx(
        normalize(own.encode(embeds), dim=1).numpy(), abs=1e-6
    )


@pytest.mark.parametrize("mode", ["sinkhorn", "gate", "argmax", "none"])
def test_no_class_loses_its_last_picture(mode: Repair) -> None:
    similarity = torch.zeros(6, 3)
    similarity[:, 1] = 0.9  # everything looks like class 1
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    new = repaired(similarity, y, mode, 0.07)
    assert set(new.tolist()) == {0, 1, 2}
    if mode == "none":
        assert torch.equal(new, y)


def test_repairs() -> None:
    similarity = torch.tensor([[0.9, 0.0], [0.1, 0.12], [0.0, 0.9], [0.8, 0.1], [0.1, 0.9]])
    y = torch.tensor([0, 0, 1, 1, 1])
    assert repaired(similarity, y, "argmax", 0.07).tolist() == [0, 1, 1, 0, 1]
    assert repaired(similarity, y, "gate", 0.07).tolist() == [0, 0, 1, 0, 1], "the second is not sure"


# Assignment.


def test_sinkhorn_keeps_rows_exactly_and_shares_roughly() -> None:
    similarity, share = draws(40, 4) * 0.1, torch.tensor([0.4, 0.3, 0.2, 0.1])
    q = sinkhorn(similarity, share, rounds=50)
    assert q.sum(1).tolist() == pytest.approx([1] * 40, abs=1e-5)
    assert q.mean(0).tolist() == pytest.approx(share.tolist(), abs=0.01)
    assert sinkhorn(similarity + 3, share).numpy() == pytest.approx(
        sinkhorn(similarity, share).numpy(), abs=1e-5
    )


def test_matching_equals_trying_everything() -> None:
    first, second = draws(5, 6), draws(5, 6, seed=1)
    cosine = normalize(first, dim=1) @ normalize(second, dim=1).T
    best = max(permutations(range(5)), key=lambda p: sum(float(cosine[i, p[i]]) for i in range(5)))
    assert tuple(matched(first, second).tolist()) == best
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(matched(first[order], first), order)


def test_kmeans_finds_planted_clusters_and_leaves_none_empty() -> None:
    centres = 5 * draws(4, 3)
    y = torch.arange(80) % 4
    found = kmeans(centres[y] + 0.1 * draws(80, 3, seed=1), 4, seed=0)
    assert all(len(found[y == c].unique()) == 1 for c in range(4)) and len(found.unique()) == 4  # type: ignore[no-untyped-call]
    assert len(kmeans(draws(5, 2), 5, seed=0).unique()) == 5  # type: ignore[no-untyped-call]


def test_class_means_keep_rows_of_empty_classes() -> None:
    points, before = draws(4, 2), draws(3, 2, seed=1)
    found = class_means(points, torch.tensor([0, 0, 2, 0]), before)
    assert found[0].tolist() == pytest.approx(points[[0, 1, 3]].mean(0).tolist(), abs=1e-6)
    assert torch.equal(found[1], before[1]) and torch.equal(found[2], points[2])


# Both stages.


def test_clusters_of_both_domains_get_one_index() -> None:
    x, y = domains()
    found = cluster(x, template(), SMALL, lambda *_: None)
    name = {int(found.labels[0][i]): int(y[0][i]) for i in range(36)}
    right = [name[int(label)] == int(true) for label, true in zip(found.labels[1], y[1])]
    assert sum(right) / 30 > 0.9
    assert found.losses[-1] < found.losses[0]
    assert found.text.shape == (2, 3, 8)


def trained(
    config: TpsConfig = SMALL, pictures: list[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor], Net]:
    x, y = domains()
    clusters = cluster(x, template() if config.text else None, config, lambda *_: None)
    net = Net()
    fit(x, None, clusters, net, config, pictures=pictures)
    return x, y, net


def crossed(net: Net, x: list[Tensor], y: list[Tensor]) -> float:
    """How much nearer to pictures of their kind than to others, across domains: a difference of cosines."""
    with torch.no_grad():
        first, second = (net.fuse(v, None) for v in x)
    cosine, same = first @ second.T, y[0][:, None] == y[1]
    return float(cosine[same].mean() - cosine[~same].mean())


def test_training_brings_the_domains_together() -> None:
    x, y, net = trained(replace(SMALL, epochs=15))
    assert crossed(net, x, y) > crossed(Net(), x, y) + 0.1


def test_the_tower_trains_only_if_asked_to() -> None:
    frozen, fresh = trained()[2], Net()
    assert torch.equal(frozen.tower.weight, fresh.tower.weight)
    assert not torch.equal(frozen.last.weight, fresh.last.weight)
    x, _ = domains()
    moved = trained(replace(SMALL, tower_rate=1e-3), pictures=x)[2]
    assert not torch.equal(moved.tower.weight, fresh.tower.weight)


def test_the_same_seed_gives_the_same_bits() -> None:
    states = [trained()[2].state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = trained(replace(SMALL, seed=1))[2].state_dict()
    assert any(not torch.equal(states[0][name], other[name]) for name in other)


def test_prototypes_and_means() -> None:
    x, _ = domains()
    config = replace(SMALL, text=False, tie="none")
    clusters = cluster(x, None, config, lambda *_: None)
    net = Net()
    found = fit(x, None, clusters, net, config)
    assert found.prototypes.shape == (6, 8), "the domains are not tied"
    assert found.prototypes.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-5)
    with torch.no_grad():
        assert torch.allclose(found.means[1], net.fuse(x[1], None).mean(0))
    assert len(found.losses) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "two classes"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"rate": 0.0}, "rate above 0"),
        ({"tie": "prompts", "text": False}, "prompts expected for a tie by prompts"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)  # type: ignore[arg-type]


def test_input_that_does_not_fit_is_refused() -> None:
    x, _ = domains()
    clusters = Clusters(
        (torch.zeros(36, dtype=torch.int64), torch.zeros(30, dtype=torch.int64)), torch.zeros(2, 3, 8), ()
    )
    holed = x[1].clone()
    holed[4, 2] = math.nan
    cases: list[tuple[list[Tensor], list[Tensor] | None, str]] = [
        ([x[0]], None, "two domains"),
        ([x[0], x[1][:, :5]], None, "one width expected, got 8 and 5"),
        ([x[0], x[1][:2]], None, "target: at least 3 rows"),
        ([x[0], holed], None, "target: finite features expected, got NaN or infinity in 1 of 30"),
        (x, [x[0], x[1][:3]], "a phase image for every row"),
    ]
    for features, phases, message in cases:
        with pytest.raises(ConfigError, match=message):
            fit(features, phases, clusters, Net(), SMALL)


def test_repair_empties_no_class_while_it_refills_another() -> None:
    """Picture 0 goes back to its class, and was the last that class 1 had left."""
    similarity = torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.1, 0.9], [0.0, 0.1, 0.9]])
    assert repaired(similarity, torch.tensor([0, 1, 2]), "argmax", 0.07).tolist() == [0, 1, 2]


def test_kmeans_refuses_more_clusters_than_different_points() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ConfigError, match="3 clusters with points in each expected"):
        kmeans(points, 3, seed=0)


class Blind(Net):
    """Says that it has a phase encoder."""

    phase = nn.Identity()


def test_a_tower_without_pictures_and_a_phase_without_images_are_refused() -> None:
    x, _ = domains()
    clusters = cluster(x, template(), SMALL, lambda *_: None)
    with pytest.raises(ConfigError, match="pictures expected, since tower_rate is above 0"):
        fit(x, None, clusters, Net(), replace(SMALL, tower_rate=1e-3))
    with pytest.raises(ConfigError, match="phase images expected by the network"):
        fit(x, None, clusters, Blind(), SMALL)


@pytest.mark.parametrize("text", [False, True])
def test_tied_by_centres_domains_share_the_index_with_and_without_text(text: bool) -> None:
    x, y = domains()
    config = replace(SMALL, text=text, repair="none")
    found = cluster(x, template() if text else None, config, lambda *_: None)
    name = {int(label): int(true) for label, true in zip(found.labels[0], y[0])}
    assert [name[int(label)] for label in found.labels[1]] == y[1].tolist()
    assert found.tied and found.returned == 1
    alone = cluster(x, template() if text else None, replace(config, tie="none"), lambda *_: None)
    assert not alone.tied and math.isnan(alone.returned)


def test_clusters_that_do_not_return_are_not_tied() -> None:
    """The second domain has kinds of its own: what starts at the first's centres leads elsewhere."""
    draw = torch.Generator().manual_seed(3)
    x = [torch.randn(300, 8, generator=draw), 3 * torch.randn(250, 8, generator=draw) + 1]
    config = replace(SMALL, classes=5, text=False, epochs=1)
    found = cluster(x, None, config, lambda *_: None)
    assert found.tied and found.returned < 0.9
    strict = replace(config, returned=0.9)
    loose = cluster(x, None, strict, lambda *_: None)
    assert not loose.tied and loose.returned == found.returned
    net = Net()
    told = fit(x, None, loose, net, strict)
    assert told.prototypes.shape == (10, 8) and not told.losses
    assert torch.equal(net.last.weight, Net().last.weight), "nothing is learnt from them"


def test_the_domain_whose_clusters_return_leads() -> None:
    """Of the second domain, only few rows are left: its own k-means splits one kind and joins two."""
    x, y = domains()
    kept = torch.tensor([0, 3, 6, 9, 12, 15, 1, 4])  # six of a kind, two of another
    points = [normalize(v - v.mean(0), dim=1) for v in (x[0], x[1][kept])]
    alone = [kmeans(v, 3, seed=0) for v in points]
    first, returned = tied_by_centres(points, alone, 3)
    second, again = tied_by_centres(points[::-1], alone[::-1], 3)
    assert torch.equal(first[0], alone[0]) and returned == again == 1
    assert torch.equal(second[1], first[0]) and torch.equal(second[0], first[1])
    name = {int(label): int(true) for label, true in zip(first[0], y[0])}
    assert [name[int(label)] for label in first[1]] == y[1][kept].tolist()
