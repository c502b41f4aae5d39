"""From a picture that is sent to its answer, through a real Kafka: the row "latency" of performance.md.

PYTHONPATH=. python tests/qshift/measure_latency.py CACHE [LONE] [BURST]

The demo's base and `qshift serve` as a process. Lone queries are sent one by one, each a second after the
answer of the one before; then BURST at once. Clean ones first, then noisy ones. Milliseconds by the clocks
of the log, from sending to the answer's record.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from core.config import Config
from qshift.demo.catalogue import prepare_catalogue
from qshift.demo.traffic import Traffic
from qshift.replay.schedule import Phase
from stream.broker import Broker
from stream.client import QueryClient
from stream.cluster import ensure_topics
from stream.topics import topic_settings

PERCENTILES = (50, 95, 99)


def measured(traffic, items, together):
    """Milliseconds of each item, by itself or all at once."""
    known = set(traffic.latency_ms)
    for start in range(0, len(items), len(items) if together else 1):
        traffic.send(items[start:] if together else items[start : start + 1])
        while traffic.waiting:
            traffic.receive(0.05)
        if not together:
            time.sleep(1.0)
    return [value for at, value in traffic.latency_ms.items() if at not in known]


def said(name, values):
    shown = ", ".join(f"p{p} {v:.0f}" for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES)))
    print(f"{name:32} {len(values):>5} queries   {shown} ms", flush=True)


def main():
    cache, folder = Path(sys.argv[1]).resolve(), Path(tempfile.mkdtemp())
    lone, burst = (int(text) for text in (*sys.argv[2:], 40, 640)[:2])
    catalogue = prepare_catalogue(None, cache, lambda *_: None)
    broker = Broker(folder / "kafka", parent_bound=True)
    broker.start()
    broker.ready()
    config = Config()
    servers = broker.bootstrap_servers
    ensure_topics(servers, topic_settings(config.kafka))
    file = folder / "qshift.toml"
    file.write_text(
        f'base = "{catalogue.base}"\ngallery = "{catalogue.gallery_folder}"\nthreads = 1\n'
        f'[kafka]\nbootstrap_servers = "{servers}"\n[labels]\nkey = "of this measurement"\n[http]\nport = 0\n'
    )
    worker = subprocess.Popen([sys.executable, "-m", "qshift.cli", "serve", "--config", str(file)])
    client = QueryClient(servers, config.kafka)
    traffic = Traffic(client, config.kafka, labels=False)
    try:
        for shift in ("clean", "noise"):
            phase = Phase(shift, "image", (shift,), lone + burst)
            items = list(catalogue.schedule(0, 0, (phase,)).items(phase))
            measured(traffic, items[:1], together=True)  # the service has started
            said(f"{shift}, one by one", measured(traffic, items[:lone], together=False))
            began = time.monotonic()
            said(f"{shift}, {burst} at once", measured(traffic, items[lone:], together=True))
            print(f"{'':32} {burst / (time.monotonic() - began):.0f} queries/s", flush=True)
    finally:
        client.close()
        worker.terminate()
        worker.wait()
        broker.stop()


if __name__ == "__main__":
    main()
