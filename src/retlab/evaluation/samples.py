"""Text that a model writes: one sample for each prompt, through transformers' own generate()."""

from typing import Any

import torch

from retlab.data.tokenizer import text_tokenizer
from retlab.evaluation.settings import GenerateSection
from retlab.evaluation.trained_model import TrainedModel


def write_samples(trained: TrainedModel, section: GenerateSection) -> list[dict[str, Any]]:
    """Continue every prompt of the section.

    A prompt stands at the start of a document, behind an end-of-text token, as documents do in training. Each sample
    is drawn from the section's seed anew, so it does not depend on the other prompts.
    """
    return [
        {"prompt": prompt, "continuation": continue_text(trained, section, prompt), "seed": section.seed}
        for prompt in section.prompts
    ]


def continue_text(trained: TrainedModel, section: GenerateSection, prompt: str) -> str:
    """What the model writes after a prompt, without special tokens."""
    # The characters <eos> in a prompt are text, as they are in documents.
    encoded = text_tokenizer(trained.tokenizer).encode(prompt, add_special_tokens=False).ids
    input_ids = torch.tensor([[trained.eos_id, *encoded]], device=trained.device)
    # The random state is the caller's again afterwards.
    with torch.random.fork_rng(), torch.inference_mode(), trained.autocast():
        torch.manual_seed(section.seed)
        output = trained.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=section.max_new_tokens,
            eos_token_id=trained.eos_id,
            pad_token_id=trained.pad_id,
            **_sampling(section),
        )
    return str(trained.tokenizer.decode(output[0, input_ids.shape[1] :].tolist(), skip_special_tokens=True))


def _sampling(section: GenerateSection) -> dict[str, Any]:
    if section.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": section.temperature,
        "top_k": section.top_k,
        "top_p": section.top_p,
    }
