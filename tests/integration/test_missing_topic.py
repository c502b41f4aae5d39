"""The topic of answers is deleted under a running worker: it is named, and the worker goes on or ends."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from kafka.admin import KafkaAdminClient

from stream.broker import Broker
from stream.cluster import ensure_topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def deleted(site: Any, topic: str) -> None:
    client = KafkaAdminClient(bootstrap_servers=site.servers)
    client.delete_topics([topic])
    site.wait(lambda: topic not in client.list_topics(), 10)
    client.close()


def delivering(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(json.load(answer)["delivering"])
    except HTTPError as error:
        with error:
            return bool(json.load(error).get("delivering", True))


def lines(worker: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.output().splitlines() if line.startswith("{")]


def test_a_missing_topic_is_named_and_stops_nothing_else(
    broker: Broker, make_site: Any, vector_world: Any, messages: Any
) -> None:
    site = make_site(broker, vector_world, http={"enabled": True, "port": 0})
    answers = site.kafka.answers
    site.send(messages(32)[0])
    worker = site.worker()
    site.wait(lambda: len(site.answers()) == 32)
    url = re.findall(r"live page (\S+)", worker.output())[0]
    assert delivering(url)

    before = len(lines(worker))
    deleted(site, answers)
    site.send(messages(48, seed=2)[0])
    site.wait(lambda: not delivering(url), 15)
    time.sleep(3)
    said = lines(worker)[before:]
    failures = [line["error"] for line in said if line["logger"] == "qshift.runner" and "error" in line]
    assert failures and all(f"the topic {answers} does not exist" in error for error in failures)
    client = [line["message"] for line in said if line["logger"].startswith("kafka")]
    assert len(client) <= 5, client  # each once

    ensure_topics(broker.bootstrap_servers, {answers: (1, {})})
    site.wait(lambda: delivering(url), 40)
    site.wait(lambda: len({record.key for record in site.answers()}) >= 48, 20)

    deleted(site, answers)
    site.send(messages(48, seed=3)[0])
    site.wait(lambda: not delivering(url), 15)
    assert worker.terminate() < 5
    assert (
        f"the topic {answers} does not exist" in " ".join(worker.output().split()).split("stopped after")[1]
    )
