"""Pages read through LMDB's map do not pass for memory in use."""

from pathlib import Path

import numpy as np

from bandana_kv import adapters
from bandana_kv.adapters.residency import _resident_file_bytes

BLOCKS = 20_000  # 78 MiB


def test_reading_a_store_whole_leaves_little_of_it_resident(tmp_path: Path) -> None:
    with adapters.create("lmdb", tmp_path / "e", size_hint_bytes=BLOCKS * 4096, pages=1) as engine:
        payloads = np.random.default_rng(0).integers(0, 256, (BLOCKS, engine.payload_bytes))
        payloads = payloads.astype(np.uint8)
        engine.put_many(adapters.block_keys(1, np.arange(BLOCKS)), payloads)
    with adapters.open_existing("lmdb", tmp_path / "e", pages=1) as engine:
        before, most = _resident_file_bytes(), 0
        for first in range(0, BLOCKS, 100):
            numbers = np.arange(first, first + 100)
            read = engine.multi_get(adapters.block_keys(1, numbers))
            assert np.array_equal(read, payloads[first : first + 100])
            most = max(most, _resident_file_bytes() - before)
    assert most < 32 << 20, f"{most >> 20} MiB of a store of 78 MiB are resident"
