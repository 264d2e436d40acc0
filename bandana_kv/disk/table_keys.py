"""The keys of a table as they lie beside its blocks: an index, and what has changed since."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bandana_kv.disk import manifest
from bandana_kv.errors import FormatError
from bandana_kv.keys import ChangedKeys, KeyIndex
from bandana_kv.keys.changes_file import read_changes, write_changes
from bandana_kv.keys.texts import TEXTS, append_texts

__all__ = ["keep_keys", "open_keys", "texts_path"]


def texts_path(root: Path, table: manifest.Table) -> Path:
    """Return the file of the keys as they were given, where they are text or bytes."""
    return manifest.table_file(root, table.segment, table.space, TEXTS)


def keep_keys(root: Path, table: manifest.Table, keys: ChangedKeys) -> int:
    """Write down what keys came and went, durably; return the bytes.

    The texts first: how much of their file is good stands in the file of the changes, so that what
    a crash leaves behind is written over.
    """
    changes = keys.changes()
    new, written, texts = list(keys.new_texts), 0, texts_path(root, table)
    if new and texts.exists():  # stores of older releases have none
        begin, end = append_texts(texts, new, changes.texts_bytes)
        written, changes = end - begin, changes._replace(texts_bytes=end)
    written += write_changes(manifest.key_changes_path(root, table), keys.index, changes)
    keys.kept(changes, len(new))
    return written


def open_keys(root: Path, table: manifest.Table, *, verify: bool) -> ChangedKeys | None:
    """Map the ids of keys, where a table has them; whoever placed it, they lie with its blocks.

    What is in the journal only is not known here.

    Parameters
    ----------
    root
        The store.
    table
        Of one of its versions.
    verify
        See that the index is as it was written: reads 14 bytes a key, 23 of text and bytes.

    Raises
    ------
    FormatError
        A file is damaged, or of another table.
    """
    if not table.keys:
        return None
    path = manifest.table_file(root, table.segment, table.space, "keys")
    index = KeyIndex.open(path)
    if verify:
        index.verify()
    loaded = table.rows - table.spare
    if index.kind != table.keys or index.keys != loaded:
        raise FormatError(
            f"{path}: has {index.keys} keys of {index.kind}, where the table has {loaded} of "
            f"{table.keys}; load the table again"
        )
    changes = read_changes(manifest.key_changes_path(root, table), index)
    if changes is not None:
        # Of a version that has grown since: here those keys are not there yet.
        beyond = changes.ids >= table.rows
        changes = changes._replace(ids=np.where(beyond, -1, changes.ids))
    return ChangedKeys(index, changes)
