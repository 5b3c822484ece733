"""Fixtures of the tests of models."""

import pytest
from tests.models.small import small_model
from tests.models.writing import ARCHITECTURES

from retlab.models import causal_lm, decoding


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return small_model(request.param, pad_token_id=0)


@pytest.fixture
def ours(monkeypatch):
    """Counts the generations that our loop takes."""
    taken = []

    def decode(model, request):
        taken.append(request)
        return decoding.decode(model, request)

    monkeypatch.setattr(causal_lm, "decode", decode)
    return taken
