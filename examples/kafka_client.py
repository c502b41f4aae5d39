"""A client of a running service that needs kafka-python and nothing of qshift.

Run: python kafka_client.py 127.0.0.1:9092 "a red seven" "a green two"
"""

import json
import sys

from kafka import KafkaConsumer, KafkaProducer

OF_LETTERS = ("x-source-", "x-error-")  # headers of dead letters: whose they are, and why


def ask(servers, texts, topic="qshift.queries"):
    """Sends texts; returns them by their place in the log, which is the key of their answers."""
    producer, asked = KafkaProducer(bootstrap_servers=servers), {}
    sent = [producer.send(topic, json.dumps({"modality": "text", "text": text}).encode()) for text in texts]
    for text, stored in zip(texts, sent):
        at = stored.get(timeout=30)
        asked[f"{at.topic}/{at.partition}/{at.offset}"] = text
    producer.close()
    return asked


def answers(servers, asked, topics=("qshift.answers", "qshift.dead-letters")):
    """Yields (text, names, best first), or (text, why it was refused), until all are there."""
    consumer = KafkaConsumer(*topics, bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None)
    for record in consumer:
        said = {name: value.decode() for name, value in record.headers if name.startswith(OF_LETTERS)}
        source = [said.get(f"x-source-{part}") for part in ("topic", "partition", "offset")]
        place = "/".join(source) if all(source) else record.key.decode()
        if text := asked.pop(place, None):  # None: another client's, or sent twice
            why = said.get("x-error-message")
            yield text, why or [found["id"] for found in json.loads(record.value)["results"]]
        if not asked:
            return consumer.close()


def main(servers, *texts):
    for text, found in answers(servers, ask(servers, texts)):
        named = found if isinstance(found, str) else ", ".join(found[:3]) or "nothing"
        print(f"{text}: {named}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
