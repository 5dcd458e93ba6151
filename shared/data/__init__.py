"""Frames with joints: one dataset protocol, its readers, crops and the procedural ward."""
