"""The hub on this machine that the tests of downloads share."""

from tests.support.fake_hub import download, serve

__all__ = ["download", "serve"]
