"""`qshift evaluate`: fits methods to splits of two-domain tasks, and reports how codes retrieve."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from core.errors import ConfigError
from qshift.benchmarks.hashing.domains import TASKS, Domains, tasks_of
from qshift.benchmarks.hashing.files import Cells
from qshift.benchmarks.hashing.methods import METHODS, methods_of
from qshift.benchmarks.hashing.report import NOTES, markdown, page, rows, sheets
from qshift.benchmarks.hashing.run import Cell, DbCodes, Done, check, evaluated
from qshift.benchmarks.hashing.splits import Scheme
from qshift.benchmarks.suite.processes import usual_workers
from qshift.terminal.bars import bars, reporter


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `codes` None: learned ones of methods that learn them, else hash_fn."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    data: Path
    bits: tuple[int, ...] = (16, 32, 64, 128)
    splits: int = 5
    scheme: Scheme = "target10"
    codes: DbCodes | None = None
    k: int = 1000
    cache: Path = Path("qshift-data/evaluate")
    workers: int | None = None
    json_file: Path | None = None
    markdown_file: Path | None = None
    html_file: Path | None = None


def evaluate(options: Options, console: Console) -> dict[Cell, Done]:
    """Runs what is not cached, prints tables, writes files.

    Raises:
        ConfigError: an unknown method or task, data that are missing, or a combination that cannot be.
    """
    methods, tasks = methods_of(options.methods), tasks_of(options.tasks)
    cells = list(cells_of(options, methods, tasks))
    files = Cells(options.cache / "results")
    with bars(console) as progress:
        told = reporter(progress)
        loaded = {task: TASKS[task](options.data, options.cache, told) for task in tasks}
        for cell in cells:
            check(METHODS[cell.method], cell, loaded[cell.task])
        keys = {cell: files.key(cell, loaded[cell.task].data_hash) for cell in cells}
        results = {cell: done for cell in cells if (done := files.load(keys[cell])) is not None}
        missing = [cell for cell in cells if cell not in results]
        told(len(results), len(cells), "fits")
        for cell, done in _computed(missing, loaded, options):
            files.save(keys[cell], done)
            results[cell] = done
            told(len(results), len(cells), "fits")
    found = {cell: results[cell] for cell in cells}
    for sheet in sheets(found):
        sheet.print(console)
    for note in NOTES:
        console.print(note, style="dim")
    _write(options, found)
    return found


def cells_of(options: Options, methods: Sequence[str], tasks: Sequence[str]) -> Iterator[Cell]:
    """Every fit there is to do; a method without codes has one per split, of 0 bits."""
    for task in tasks:
        for name in methods:
            method = METHODS[name]
            usual: DbCodes = "learned" if method.learns and options.scheme != "out_of_sample" else "hash_fn"
            for bits in (0,) if method.exact else options.bits:
                for split in range(options.splits):
                    yield Cell(name, task, bits, split, options.scheme, options.codes or usual, options.k)


def _computed(
    cells: Sequence[Cell], loaded: dict[str, Domains], options: Options
) -> Iterator[tuple[Cell, Done]]:
    workers = min(options.workers or usual_workers(), len(cells))
    if workers <= 1:
        for cell in cells:
            yield cell, evaluated(METHODS[cell.method], cell, loaded[cell.task])
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: dict[Future[Done], Cell] = {
            pool.submit(_one, cell, options.data, options.cache): cell for cell in cells
        }
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _one(cell: Cell, data: Path, cache: Path) -> Done:
    import torch

    torch.set_num_threads(1)
    return evaluated(METHODS[cell.method], cell, _loaded(cell.task, data, cache))


@lru_cache(maxsize=2)
def _loaded(task: str, data: Path, cache: Path) -> Domains:
    return TASKS[task](data, cache, None)


def _write(options: Options, results: dict[Cell, Done]) -> None:
    title = f"qshift evaluate {','.join(options.methods)} --task {','.join(options.tasks)}"
    outputs: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (options.json_file, lambda: json.dumps(rows(results), indent=1, allow_nan=False) + "\n"),
        (options.markdown_file, lambda: markdown(results, title)),
        (options.html_file, lambda: page(results, title)),
    )
    for path, text in outputs:
        if path is None:
            continue
        try:
            path.write_text(text())
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}; name another file") from error
