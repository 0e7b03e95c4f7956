"""The hub on this machine that the tests of downloads share."""

from tests.support.fake_hub import command, download, serve

__all__ = ["command", "download", "serve"]
