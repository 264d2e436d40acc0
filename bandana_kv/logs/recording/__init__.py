"""Requests as they come, kept in rolling files to learn from; and read back as access logs.

Imports formats and metrics; a store hands it ids, and it never waits for a disk on their way.
"""

from bandana_kv.logs.formats.recording import is_recording
from bandana_kv.logs.recording.playback import LiveCounts, Recording, read_recording
from bandana_kv.logs.recording.recorder import Recorder

__all__ = ["LiveCounts", "Recorder", "Recording", "is_recording", "read_recording"]
