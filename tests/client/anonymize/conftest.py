"""Disks that are full."""

import resource
import subprocess
from contextlib import contextmanager

import pytest


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond so many bytes, as on a disk that is full."""

    @contextmanager
    def limited(limit):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(autouse=True)
def wardpose_home(tmp_path_factory, monkeypatch):
    """Vaults are remembered in a folder of the test."""
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path_factory.mktemp("home")))


class SmallDisk:
    """A file system of its own, whose size can be changed."""

    def __init__(self, folder):
        self.folder = folder

    def resize(self, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB; skips where none can be mounted (the tests with `full_disk` run everywhere)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)
