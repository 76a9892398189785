"""A step's inputs against plain loops: pages, parameters, ids from the host or the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from octavo_kernels.ops import SamplingRows
from octavo_kernels.step_inputs import HEADER, NEW_ROW, PacketLayout, StepBuffers

from .tables import DEVICES, table

MAX_ROWS, MAX_BLOCKS, BLOCK_SIZE = 6, 40, 4


@dataclass
class Seq:
    row: int
    start: int
    ids: list[int]  # -1: the row's last token
    have: list[int]  # pages in its table
    fresh: list[int] = field(default_factory=list)  # pages that the packet brings
    samples: bool = True
    params: tuple[float, int, float, float, int] | None = None


def pack(seqs: list[Seq]) -> torch.Tensor:
    sampled = [index for index, seq in enumerate(seqs) if seq.samples]
    new = [seq for seq in seqs if seq.params is not None]
    tokens = sum(len(seq.ids) for seq in seqs)
    appended = sum(len(seq.fresh) for seq in seqs)
    at = PacketLayout.of(len(seqs), tokens, len(sampled), len(new), appended)
    packet = torch.zeros(at.end, dtype=torch.int32)
    packet[:5] = torch.tensor([len(seqs), tokens, len(sampled), len(new), appended])
    order = 0
    token, block = 0, 0
    for index, seq in enumerate(seqs):
        packet[at.rows + index] = seq.row
        packet[at.starts + index] = seq.start
        packet[at.have + index] = len(seq.have)
        packet[at.new_index + index] = -1
        packet[at.appended + block : at.appended + block + len(seq.fresh)] = torch.tensor(
            seq.fresh, dtype=torch.int32
        )
        packet[at.token_ids + token : at.token_ids + token + len(seq.ids)] = torch.tensor(seq.ids)
        token, block = token + len(seq.ids), block + len(seq.fresh)
        packet[at.query_starts + index + 1] = token
        packet[at.appended_starts + index + 1] = block
        if seq.params is not None:
            packet[at.new_index + index] = order
            place = at.new + order * NEW_ROW
            temperature, top_k, top_p, min_p, seed = seq.params
            floats = torch.tensor([temperature, top_p, min_p]).view(torch.int32)
            halves = torch.tensor([seed]).view(torch.int32)
            packet[place] = floats[0]
            packet[place + 1] = top_k
            packet[place + 2 : place + 4] = floats[1:]
            packet[place + 4 : place + 6] = halves
            order += 1
    packet[at.sampled : at.new] = torch.tensor(sampled, dtype=torch.int32)
    return packet


class Device:
    """What rows keep, and the buffers of a step, full of nonsense before it."""

    def __init__(self, name: str, seqs: list[Seq], cap: int) -> None:
        self.device = DEVICES[name]
        self.tables = torch.full((MAX_ROWS + 1, MAX_BLOCKS), 99, dtype=torch.int32)
        for seq in seqs:
            self.tables[seq.row, : len(seq.have)] = torch.tensor(seq.have, dtype=torch.int32)
        self.tables = self.tables.to(self.device)
        size = MAX_ROWS + 1
        self.state = SamplingRows(
            temperature=torch.full((size,), 9.0, device=self.device),
            top_k=torch.full((size,), 9, dtype=torch.int32, device=self.device),
            top_p=torch.full((size,), 9.0, device=self.device),
            min_p=torch.full((size,), 9.0, device=self.device),
            seeds=torch.full((size,), 9, device=self.device),
            last_tokens=torch.arange(100, 100 + size, device=self.device),
        )
        self.buffers = StepBuffers.allocate(cap, cap, torch.device(self.device))
        for buffer in self.buffers:
            buffer.fill_(77)

    def run(self, name: str, seqs: list[Seq], seq_cap: int, token_cap: int) -> None:
        table(name).step_inputs(
            pack(seqs).to(self.device), self.buffers, self.tables, self.state,
            block_size=BLOCK_SIZE, seq_cap=seq_cap, token_cap=token_cap,
        )  # fmt: skip


CASES = {
    "decode": (
        [
            Seq(3, 5, [-1], [7, 8]),
            Seq(0, 8, [-1], [4, 5], [6]),
            Seq(5, 0, [41], [], [9], params=(0.5, 3, 0.9, 0.1, (1 << 62) + 12345678901)),
        ],
        4,
        4,
    ),
    "mixed": (
        [
            Seq(1, 3, [-1], [2]),
            Seq(2, 2, [11, 12, 13], [3], [30], samples=False),
            Seq(4, 4, list(range(20, 37)), [31], [32, 33, 34, 35, 36], params=(0.0, -1, 1, 0, 7)),
            Seq(5, 0, [50], [], [37], params=(1.0, 0, 0.5, 0.0, 0)),
        ],
        5,
        64,
    ),
    "exact": ([Seq(0, 0, [1, 2, 3, 4, 5], [], [1, 2])], 1, 5),
    "nobody": ([], 3, 3),
}


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_step_inputs(name: str, case: str) -> None:
    seqs, seq_cap, token_cap = CASES[case]
    device = Device(name, seqs, 80)
    device.run(name, seqs, seq_cap, token_cap)
    tables, buffers = device.tables.cpu(), [buffer.cpu() for buffer in device.buffers]
    ids, positions, slots, rows, query_starts, contexts, last, sampled_rows, ends = buffers

    token = 0
    chosen = []
    for index, seq in enumerate(seqs):
        pages = seq.have + seq.fresh
        assert tables[seq.row, : len(pages)].tolist() == pages
        assert tables[seq.row, len(pages)] == 99
        for offset, known in enumerate(seq.ids):
            position = seq.start + offset
            assert ids[token] == (100 + seq.row if known < 0 else known)
            assert positions[token] == position
            expected = pages[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            assert slots[token] == expected
            token += 1
        assert (rows[index], contexts[index]) == (seq.row, seq.start + len(seq.ids))
        assert query_starts[index + 1] == token
        if seq.samples:
            chosen.append((token - 1, seq.row, seq.start + len(seq.ids)))
    assert query_starts[0] == 0
    pad_row = MAX_ROWS
    chosen += [(0, pad_row, 0)] * (seq_cap - len(chosen))
    found = list(zip(last.tolist(), sampled_rows.tolist(), ends.tolist(), strict=True))
    assert found[:seq_cap] == chosen
    assert ids[token:token_cap].tolist() == [0] * (token_cap - token)
    assert slots[token:token_cap].tolist() == [-1] * (token_cap - token)
    assert rows[len(seqs) : seq_cap].tolist() == [pad_row] * (seq_cap - len(seqs))
    assert query_starts[len(seqs) + 1 : seq_cap + 1].tolist() == [token] * (seq_cap - len(seqs))
    assert contexts[len(seqs) : seq_cap].tolist() == [0] * (seq_cap - len(seqs))
    for buffer, cap in ((ids, token_cap), (rows, seq_cap), (query_starts, seq_cap + 1)):
        assert (buffer[cap:] == 77).all(), "written past the bounds"


@pytest.mark.parametrize("name", DEVICES)
def test_new_rows_bring_their_parameters_and_others_keep_theirs(name: str) -> None:
    seqs = CASES["decode"][0]
    device = Device(name, seqs, 8)
    device.run(name, seqs, 4, 4)
    state = [column.cpu() for column in device.state]
    assert [column[5].item() for column in state[:4]] == pytest.approx([0.5, 3, 0.9, 0.1])
    assert state[4][5] == (1 << 62) + 12345678901
    for column in state[:5]:
        assert (column[:5] == 9).all() and column[6] == 9


def test_the_header_is_as_long_as_it_says() -> None:
    assert PacketLayout.of(0, 0, 0, 0, 0).rows == HEADER
