# SPDX-License-Identifier: GPL-2.0-only
"""Damaged ledgers: each reader reads what is there, or says in a sentence that it cannot."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from exporter.collector import LedgerCollector
from exporter.exposition import landing_page, metrics_page
from exporter.source import LedgerSource
from soak.config.sections import Config, RegionSection, WorkloadSection
from soak.errors import UsageError
from soak.lab.progress import Progress
from soak.ledger.layout import UNREADABLE, Layout, LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import CANARY, HOST, SUPERVISOR, WORKER
from soak.ledger.view import LedgerView
from soak.ledger.writer import Ledger
from soak.model.vocabulary import RegionKind, RunState, VerdictWord, WorkerState
from soak.report.top.terminal import watch
from soak.report.top.view import Reading, make_view
from soak.workload.plan import make_plan
from tests.ledger.test_damage import PREFIX, read_all
from tests.support.fuzz import damaged_bytes, damaged_json, fuzz, many_inputs

if TYPE_CHECKING:
    from pathlib import Path

REGIONS: Final = (
    RegionSection("dax", RegionKind.DEVICE_DAX, "/dev/dax0.0", 64 << 20),
    RegionSection("files", RegionKind.FS_DAX, "/mnt", 32 << 20),
    RegionSection("control", RegionKind.ANONYMOUS, "", 16 << 20),
)
WORKLOAD: Final = WorkloadSection(mappers=1, invalidators=1, holders=1, trials=0)
NOW_NS: Final = 1_700_000_000_000_000_000
ODD_WORDS: Final = (0, 1, 2, 255, (1 << 31) - 1, 1 << 63, (1 << 64) - 1)
WORD: Final = 8
# Drawing and writing take long: of so many inputs, as a share.
_SHOWN: Final = 0.05
_LONGEST_SENTENCE: Final = 1000


class Sample(NamedTuple):
    """A ledger as a run leaves it, and what its header describes."""

    layout: Layout
    content: bytes
    described: dict[str, Any]

    @classmethod
    def make(cls, path: Path, *, lab: bool) -> Sample:
        plan = make_plan(Config(regions=REGIONS, workload=WORKLOAD))
        layout = plan.layout({"run_id": "run-1", "filesystem": "ext4"}, lab=lab)
        ledger = Ledger.create(path, layout)
        _fill(ledger)
        content = path.read_bytes()
        length = PREFIX.unpack_from(content)[2]
        return cls(layout, content, json.loads(content[PREFIX.size :][:length]))


def _fill(ledger: Ledger) -> None:
    """Write numbers such as a run counts into all blocks."""
    draw = random.Random("ledger")  # noqa: S311 - repeatable on purpose
    for block in ledger.layout.blocks.values():
        writer = ledger.block(block.name)
        for field in block.fields.values():
            if field.text:
                writer.set_text(field.name, "6.1.0-56-amd64")
            elif not field.values:
                view = writer.view(field.name)
                # Of a table most is 0: few operations fail, and in few ways.
                chance = 0.02 if len(field.axes) > 1 else 0.8
                for position in range(len(view)):
                    view[position] = draw.randrange(1000) if draw.random() < chance else 0
                if field.is_group:
                    view[0] = 2
        if block.kind in {SUPERVISOR, HOST}:
            writer.set_word("state", RunState.RUNNING)
            writer.set_word("verdict", VerdictWord.UNKNOWN)
        if block.kind in {WORKER, CANARY}:
            writer.set_word("state", WorkerState.RUNNING)
            recorder = writer.view("recorder")
            recorder[:] = memoryview(struct.pack(f"{len(recorder)}Q", *[0] * len(recorder))).cast("Q")
        if block.kind == SUPERVISOR:
            writer.view("dead")[0] = 0
            writer.set("realtime_offset_ns", NOW_NS)


def damage(draw: random.Random, sample: Sample) -> bytes:
    """Damage the header as bytes or as JSON, or the words of blocks, or cut the file."""
    content = sample.content
    for _ in range(draw.choice((1, 1, 2, 3))):
        match draw.randrange(8):
            case 0:
                # Words in front of the description: of those that count, each by itself.
                place = WORD * draw.randrange(PREFIX.size // WORD)
                odd = draw.choice((*ODD_WORDS, draw.getrandbits(64)))
                content = content[:place] + struct.pack("<Q", odd) + content[place + WORD :]
            case 1:
                bits = bytearray(content)
                bits[draw.randrange(len(bits))] ^= 1 << draw.randrange(8)
                content = bytes(bits)
            case 2:
                content = content[: draw.randrange(len(content))]
            case 3:
                end = min(PREFIX.unpack_from(sample.content)[2], len(content))
                content = damaged_bytes(draw, content, 0, end)
            case 4 | 5:
                return _with_description(sample, damaged_json(draw, sample.described).encode())
            case _:
                content = _with_odd_words(draw, sample, content)
    return content


def _with_description(sample: Sample, text: bytes) -> bytes:
    """Put a description in the place of the header's, with the checksum that fits."""
    magic, version, _, mirror, _ = PREFIX.unpack_from(sample.content)
    head = PREFIX.pack(magic, version, len(text), mirror, zlib.crc32(text)) + text
    return head + sample.content[len(head) :]


def _with_odd_words(draw: random.Random, sample: Sample, content: bytes) -> bytes:
    """Overwrite some words of a field, every one alike likely, or all of it."""
    block = draw.choice(list(sample.layout.blocks.values()))
    field = draw.choice(list(block.fields.values()))
    words = bytearray(content)
    for _ in range(draw.choice((1, 3, 100))):
        place = block.offset + WORD * (field.offset + draw.randrange(field.words))
        odd = draw.choice((*ODD_WORDS, draw.getrandbits(64), draw.randrange(1000)))
        words[place : place + WORD] = struct.pack("<Q", odd)
    return bytes(words)


def read_everywhere(path: Path, layout: Layout, *, shown: bool) -> None:
    """Read a ledger by each of its readers, whose only errors are those that they promise.

    `shown`: whether what was read is also written and drawn, which takes ten times as long.
    """
    for read in READERS:
        read(path, layout)
    if shown:
        _serve(path, layout, shown=True)
        _show(path)


def _read(path: Path, _: Layout) -> None:
    """Read a ledger of which nothing is known."""
    with contextlib.suppress(LedgerError), LedgerReader.open(path) as reader:
        with contextlib.suppress(*UNREADABLE):
            make_view(Reading.take(reader, 1, NOW_NS))
        read_all(reader)


def _read_as_host(path: Path, layout: Layout) -> None:
    """Read a ledger as the host of a lab does, which knows its layout by itself."""
    with contextlib.suppress(LedgerError), LedgerReader.open(path, layout=layout) as reader:
        assert Progress(io.StringIO()).ledger_line(LedgerView(reader, NOW_NS), 60.0).isprintable()
        read_all(reader)


def _serve(path: Path, _: Layout, *, shown: bool = False) -> None:
    """Serve a ledger as the exporter does; of one that is damaged, what can be read of it."""
    with contextlib.closing(LedgerSource(-1, str(path))) as source:
        collector = LedgerCollector(source.reader, lambda: NOW_NS)
        families = {family.name: family for family in collector.collect()}
        assert {"dax_soak_up", "dax_soak_run_active"} <= set(families)
        if shown:
            metrics = metrics_page(collector, "")[0]
            assert "\ndax_soak_up " in metrics.decode()
            landing_page(collector)


def _show(path: Path) -> None:
    """Show a ledger as `dax-soak top` does, or refuse it in a sentence."""
    out, refusal = io.StringIO(), f"The ledger {path}"
    with contextlib.redirect_stdout(out):
        try:
            watch(path, path.with_name("verdict.json"), interval=None, once=True)
        except UsageError as error:
            refusal = str(error)
    assert refusal.startswith(f"The ledger {path}")
    assert len(refusal) < _LONGEST_SENTENCE
    assert "".join(out.getvalue().split("\n")).isprintable()


READERS: Final = (_read, _read_as_host, _serve)


@pytest.mark.parametrize("lab", [False, True], ids=["machine", "lab"])
def test_undamaged_ledgers_are_read(tmp_path: Path, *, lab: bool) -> None:
    path = tmp_path / "ledger"
    sample = Sample.make(path, lab=lab)
    read_everywhere(path, sample.layout, shown=True)
    with LedgerReader.open(path) as reader:
        assert reader.layout == sample.layout
        collector = LedgerCollector(lambda: reader, lambda: NOW_NS)
        up = next(family for family in collector.collect() if family.name == "dax_soak_up")
        assert up.samples[0].value == 1
        assert make_view(Reading.take(reader, 1, NOW_NS)).state == RunState.RUNNING


@many_inputs
def test_damage_raises_documented_errors_only(tmp_path: Path, count: int) -> None:
    samples = [Sample.make(tmp_path / name, lab=name == "lab") for name in ("lab", "machine")]
    path = tmp_path / "ledger"

    def try_input(draw: random.Random) -> None:
        sample = draw.choice(samples)
        path.write_bytes(damage(draw, sample))
        if draw.random() < _SHOWN:
            read_everywhere(path, sample.layout, shown=True)
        else:
            draw.choice(READERS)(path, sample.layout)

    fuzz("ledger", count, try_input)
