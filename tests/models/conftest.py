"""Fixtures of the tests of models."""

import pytest

from retlab.models import causal_lm, decoding


@pytest.fixture
def ours(monkeypatch):
    """Counts the generations that our loop takes."""
    taken = []

    def decode(model, request):
        taken.append(request)
        return decoding.decode(model, request)

    monkeypatch.setattr(causal_lm, "decode", decode)
    return taken
