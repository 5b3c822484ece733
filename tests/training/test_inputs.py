"""What a training checks before it begins."""

from pathlib import Path

import pytest
from tests.training.conftest import VOCABULARY
from tests.training.experiment import make_config, make_inputs

from retlab.config import load_config
from retlab.errors import UserError
from retlab.training.inputs import request_for


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    make_inputs(tmp_path, documents=2)
    config = load_config(make_config(tmp_path, "small"))
    assert config.tokenizer.folder is not None
    sections = (config.seed, config.data, config.model, config.train, config.tokenizer.folder, config.run_folder)
    assert request_for(*sections, vocab_size=VOCABULARY, identity={}).eos_id == 2
    with pytest.raises(UserError, match=rf"has {VOCABULARY} tokens, and the model {VOCABULARY - 1}"):
        request_for(*sections, vocab_size=VOCABULARY - 1, identity={})
