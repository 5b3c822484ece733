"""`train.init_from`: the weights of an earlier model as the start of a training."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers.utils import logging

from retlab.errors import UserError
from retlab.models.causal_lm import CausalLM
from retlab.section import absolute
from retlab.training.request import model_differences


def load_initial_weights(model: CausalLM, source: str) -> None:
    """Copy the weights of a model folder or hub model into a new model.

    Raises:
        UserError: there is no such model, or it is of another architecture or other sizes.
    """
    folder = absolute(source)
    name = str(folder) if folder.is_dir() else source
    values = _read_config(model, name, source)
    found, wanted = values.get("model_type"), model.config.model_type
    if found != wanted:
        raise UserError(f"train.init_from: {source} is a {found} model, but this configuration's is {wanted}")
    differences = model_differences(values, model.config.get_params())
    if differences:
        raise UserError(f"train.init_from: {source} is a model of other sizes ({'; '.join(differences)})")
    try:
        # One file is read; a bar for it is noise.
        logging.disable_progress_bar()
        trained = type(model).from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(source, error) from error
    finally:
        logging.enable_progress_bar()
    model.load_state_dict(trained.state_dict())


def _read_config(model: CausalLM, name: str, source: str) -> dict[str, Any]:
    if Path(name).is_absolute() and not (Path(name) / "config.json").is_file():
        raise UserError(f"train.init_from: {source} is no model folder (it has no config.json)")
    try:
        values, _ = type(model.config).get_config_dict(name)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise _unreadable(source, error) from error
    return values


def _unreadable(source: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"train.init_from: {source} is neither a readable model folder nor a model of the hub ({reason})")
