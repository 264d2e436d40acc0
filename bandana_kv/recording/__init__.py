"""Requests as they come, kept in rolling files to learn from; and read back as access logs."""

from bandana_kv.recording.reading import LiveCounts, Recording, is_recording, read_recording
from bandana_kv.recording.recorder import Recorder

__all__ = ["LiveCounts", "Recorder", "Recording", "is_recording", "read_recording"]
