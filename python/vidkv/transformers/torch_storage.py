"""Placeholder replaced below."""
class TorchStorage:
    pass
