"""Settings of topics that a service makes: ours, and the operator's over them."""

import pytest
from pydantic import ValidationError

from core.config import Config
from stream.topics import topic_settings


def test_settings_of_ones_own_stand_over_ours() -> None:
    plain = Config().kafka
    own = {
        "journal": {"min.insync.replicas": "2"},
        "queries": {"max.message.bytes": "9"},
        "items": {"a": "b"},
    }
    kafka = Config.model_validate({"kafka": {"topic_settings": own, "replication_factor": 3}}).kafka
    found, before = topic_settings(kafka), topic_settings(plain)
    assert found[kafka.journal] == (1, {**before[kafka.journal][1], "min.insync.replicas": "2"})
    assert found[kafka.queries][1]["max.message.bytes"] == "9"
    assert found[kafka.answers] == before[kafka.answers] and kafka.items not in found


@pytest.mark.parametrize("wrong", [{"topic_settings": {"journals": {}}}, {"replication_factor": 0}])
def test_a_role_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"kafka": wrong})
