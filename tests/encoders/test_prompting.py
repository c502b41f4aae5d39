"""Entering text towers behind their embeddings: for ordinary tokens nothing may change."""

from pathlib import Path

import pytest
import torch

from core.errors import ConfigError
from encoders.clip import open_clip_towers
from encoders.packages import emoji_towers
from encoders.prompting import PromptTower, template
from encoders.text import TextTower

TEXTS = ("an image of a dog", "two cats", "a very long day in the old harbour of the town")


def check_equal(text: TextTower) -> None:
    tower = PromptTower(text)
    ids = tower.tokens(TEXTS)
    with torch.no_grad():
        own = text.raw(ids)
        found = tower.encode(tower.embedding(ids), ids)
        assert found.numpy() == pytest.approx(own.numpy(), abs=1e-5)
        alone = torch.cat([tower.encode(tower.embedding(row[None]), row[None]) for row in ids])
        assert alone.numpy() == pytest.approx(own.numpy(), abs=1e-5), "no part in its batch mates"
        short = int((ids[1] != 0).sum())
        trimmed = tower.encode(tower.embedding(ids[1:2, :short]), ids[1:2, :short])
        assert trimmed.numpy() == pytest.approx(own[1:2].numpy(), abs=1e-5), "padding says nothing"
    embeds = tower.embedding(ids).detach().requires_grad_(True)
    tower.encode(embeds, ids)[0].sum().backward()
    assert embeds.grad is not None and embeds.grad[0].abs().sum() > 0 and not embeds.grad[1].any()


def test_clip(tiny: Path) -> None:
    text = open_clip_towers(f"local-dir:{tiny}").text
    check_equal(text)
    tower = PromptTower(text)
    ids = tower.tokens(("a dog",))
    later = tower.embedding(ids).detach().clone()
    later[:, int(ids.argmax()) + 1 :] += 1  # behind the end of the text
    with torch.no_grad():
        assert torch.allclose(tower.encode(later, ids), text.raw(ids), atol=1e-5), (
            "a causal tower never looks ahead"
        )


@pytest.mark.slow
def test_bert(tmp_path: Path) -> None:
    emoji_towers(tmp_path)
    check_equal(open_clip_towers(f"local-dir:{tmp_path}").text)


def test_template_names_the_learnt_places(tiny: Path) -> None:
    tower = PromptTower(open_clip_towers(f"local-dir:{tiny}").text)
    ids, places = template(tower, "an image of a", 4, ".")
    again = tower.tokens(("an image of a dog.",))[0]
    assert places.stop - places.start == 4
    assert torch.equal(ids[: places.start], again[: places.start])
    assert len(ids[places].unique()) == 1  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match="4 tokens 'antidisestablishmentarianism' in a row expected"):
        template(tower, "an image of a", 4, ".", word="antidisestablishmentarianism")


def test_towers_that_pool_otherwise_are_refused(tiny: Path) -> None:
    text = open_clip_towers(f"local-dir:{tiny}").text
    text.raw.pool_type = "last"
    with pytest.raises(ConfigError, match="a CLIP or a Hugging Face text tower expected"):
        PromptTower(text)
