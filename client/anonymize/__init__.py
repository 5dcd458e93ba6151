"""Frames, folders and videos in, anonymised ones out."""
