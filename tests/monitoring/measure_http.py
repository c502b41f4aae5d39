"""Measures what HTTP clients take from the answers' loop; no test.

Figures and command: docs/reference/operations.md.

    python tests/monitoring/measure_http.py [mixed|python ...] [--storms metrics,fresh,strangers,idle,drip]
        [--clients 200] [--pairs 5] [--seconds 3]

A loop of work runs in turns with and without a storm of clients (another process). Shown is the share of its
turns that it loses to the interpreter lock: time in which it waited for a core is left out (Linux,
/proc/thread-self/schedstat), because the clients are on the same machine. Then the share of a core that the
other threads of the service take, which is what can take the lock, and that the front takes; and what a third
process sees: the longest wait of a probe, the probes and scrapes that were lost, from the clients' own
address and from another. Where cores are shared with others the second figure is the one to trust.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STORMS = ("metrics", "fresh", "strangers", "idle", "drip")
SCRAPE_SECONDS = 5.0
PROBES = ("/healthz", "/readyz", "/livez")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, host: str) -> int:
    """One request on an open connection; returns the status."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1])


async def client(kind: str, port: int) -> None:
    """Asks as fast as it is answered, or holds a connection, and comes again when it is closed."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        try:
            if kind == "idle":
                await reader.read()
            while kind == "drip":
                writer.write(b"G")
                await writer.drain()
                await asyncio.sleep(0.5)
            while kind in ("metrics", "fresh", "strangers"):
                host = "evil.example" if kind == "strangers" else "localhost"
                await ask(reader, writer, "/metrics", host)
                if kind == "fresh":
                    break
        except (OSError, asyncio.IncompleteReadError, IndexError):
            pass
        finally:
            writer.transport.abort()


async def storm(kind: str, port: int, clients: int) -> None:
    """Starts and ends the clients as lines on stdin say."""
    loop, tasks = asyncio.get_running_loop(), []
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if line == "go":
            tasks = [asyncio.create_task(client(kind, port)) for _ in range(clients)]
        for task in tasks if line == "end" else ():
            task.cancel()
    os._exit(0)


async def one(port: int, path: str, source: str, budget: float) -> tuple[bool, float]:
    began = time.monotonic()

    async def asked() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        try:
            return await ask(reader, writer, path, "localhost")
        finally:
            writer.transport.abort()

    try:
        good = await asyncio.wait_for(asked(), budget) == 200
    except (OSError, asyncio.IncompleteReadError, TimeoutError, IndexError):
        good = False
    return good, time.monotonic() - began


async def watch(port: int) -> None:
    """Probes and scrapes from the clients' address and from another until stdin ends; then prints."""
    seen: dict[str, list[tuple[bool, float]]] = {"probes": [], "scrapes": [], "own scrapes": []}

    async def every(name: str, pause: float, path: str, source: str, budget: float) -> None:
        while True:
            seen[name].append(await one(port, path, source, budget))
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(every("probes", 0.2, path, "127.0.0.1", SCRAPE_SECONDS)) for path in PROBES]
    for name, source in (("scrapes", "127.0.0.1"), ("own scrapes", "127.0.0.2")):
        tasks.append(asyncio.create_task(every(name, 0.5, "/metrics", source, SCRAPE_SECONDS)))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps(seen))
    os._exit(0 if tasks else 1)


def python_work() -> None:
    sum(number * number for number in range(20_000))


def mixed_work() -> Callable[[], None]:
    """As the service does: a forward through a small tower, codes, and the answers as JSON."""
    import torch

    torch.set_num_threads(1)
    tower = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, 2), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, 2), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 64),
    ).eval()  # fmt: skip
    batch = torch.randn(32, 3, 64, 64)

    def work() -> None:
        with torch.no_grad():
            codes = (tower(batch) > 0).numpy()
        for row in codes:
            json.dumps([{"key": key, "distance": int(row.sum()), "title": "a title"} for key in range(20)])

    return work


def waited() -> float:
    """Seconds that this thread has waited for a core."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def used(process: int) -> float:
    """Seconds of CPU of another process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def turns(work: Callable[[], None], seconds: float) -> float:
    """Turns of the loop in a second in which it could run."""
    count, began, before = 0, time.perf_counter(), waited()
    while time.perf_counter() - began < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - began - (waited() - before))


def measure(
    work: Callable[[], None], port: int, front: int, kind: str, clients: int, pairs: int, seconds: float
) -> str:
    command = [sys.executable, __file__, "--port", str(port)]
    storming = subprocess.Popen(
        [*command, "--storm", kind, "--clients", str(clients)], stdin=subprocess.PIPE, text=True
    )
    watching = subprocess.Popen(
        [*command, "--watch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    ratios, shares, beside = [], [], []
    time.sleep(1.0)
    for _ in range(pairs):
        quiet = turns(work, seconds)
        storming.stdin.write("go\n")
        storming.stdin.flush()
        turns(work, 0.5)
        before, began = used(front), time.perf_counter()
        others = time.process_time() - time.thread_time()
        ratios.append(turns(work, seconds) / quiet)
        took = time.perf_counter() - began
        beside.append((time.process_time() - time.thread_time() - others) / took)
        shares.append((used(front) - before) / took)
        storming.stdin.write("end\n")
        storming.stdin.flush()
        turns(work, 0.5)
    seen = json.loads(watching.communicate("")[0])
    storming.communicate("")
    probes = max(wait for _, wait in seen["probes"])
    lost = {name: sum(not good for good, _ in seen[name]) for name in seen}
    return (
        f"{100 * (1 - statistics.median(ratios)):5.1f} % lost ({100 * (1 - max(ratios)):.1f} to "
        f"{100 * (1 - min(ratios)):.1f}), other threads "
        f"{100 * statistics.median(beside):.1f} %, front {100 * statistics.median(shares):.0f} % of a core, "
        f"longest probe {probes:.2f} s, lost probes {lost['probes']}/{len(seen['probes'])}, scrapes "
        f"{lost['scrapes']}/{len(seen['scrapes'])}, from another address "
        f"{lost['own scrapes']}/{len(seen['own scrapes'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("works", nargs="*", default=["mixed", "python"])
    parser.add_argument("--storms", default=",".join(STORMS))
    parser.add_argument("--storm")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.storm:
        asyncio.run(storm(options.storm, options.port, options.clients))
    elif options.watch:
        asyncio.run(watch(options.port))
    else:
        service(options)


def service(options: argparse.Namespace) -> None:
    """Serves real metrics beside the loop."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from monitoring.history import History
    from monitoring.http import Views, serve
    from monitoring.metrics import Metrics
    from monitoring.registry import fresh_registry

    metrics = Metrics(fresh_registry())
    for lane in range(16):
        for name in ("updates", "batches", "queries"):
            metrics._counters[f"qshift_{name}_total"].labels(f"{lane}:image").inc()
        for name in ("loss",):
            for part in "abcd":
                metrics._set(f"qshift_{name}", 0.5, f"{lane}:image", part)
    views = Views(History(), metrics.registry, ready=lambda: {"running": True})
    serving = serve(views, port=0)
    try:
        for name in options.works:
            work = mixed_work() if name == "mixed" else python_work
            turns(work, 1.0)
            for kind in options.storms.split(","):
                clients = 3 * options.clients if kind == "idle" else options.clients
                shown = measure(
                    work, serving.port, serving.process_id, kind, clients, options.pairs, options.seconds
                )
                print(f"{name:7} {clients:4} {kind:9} {shown}", flush=True)
    finally:
        serving.stop()


if __name__ == "__main__":
    main()
