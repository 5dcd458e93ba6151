"""Joints as files: how each laboratory's programs read them."""
