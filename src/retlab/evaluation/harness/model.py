"""The harness's own model class for transformers, with a progress bar and, on request, a state that is carried on."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from retlab.evaluation.harness.quiet import Quiet
from retlab.evaluation.perplexity import carried_losses
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import TrainedModel
from retlab.progress import Progress, progress


class _Finished(CacheHook):
    """Hears of every finished request, as the harness's cache of answers does."""

    def __init__(self, model: "HarnessModel") -> None:
        super().__init__(None)
        self._model = model

    def add_partial(self, attr: str, *_answered: Any) -> None:
        # Texts are counted by their tokens.
        if attr != "loglikelihood_rolling":
            self._model.advance(1)


class HarnessModel(HFLM):
    """HFLM on a model that is loaded already. All that decides a number is HFLM's, but for `carry_state`.

    Args:
        trained: the model; the tokenizer is loaded anew from its folder, as HFLM does with a path.
        section: `tasks.batch_size` and `carry_state` are read.
        quiet: the silence that the harness runs in, through which the bars are seen.
    """

    def __init__(self, trained: TrainedModel, section: EvaluateSection, quiet: Quiet) -> None:
        super().__init__(
            pretrained=trained.model,
            backend="causal",
            tokenizer=str(trained.folder),
            batch_size=section.tasks.batch_size,
            mixed_precision_dtype=torch.bfloat16 if trained.bf16 else None,
        )
        self._trained, self._carries, self._quiet = trained, section.carry_state, quiet
        self._bar: Progress | None = None
        self.label = ""
        "What the bar is called."
        self.set_cache_hook(_Finished(self))

    @contextlib.contextmanager
    def _progress(self, total: int, unit: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with self._quiet.aloud():
                self._bar = stack.enter_context(progress(self.label, total=total, unit=unit))
            try:
                yield
            finally:
                self._bar = None

    def advance(self, amount: int) -> None:
        """So much more is done."""
        if self._bar is not None:
            self._bar.advance(amount)

    def loglikelihood(self, requests: list[Instance], **_options: Any) -> list[tuple[float, bool]]:
        """Log-likelihood of every request's continuation, and whether it is what greedy decoding writes."""
        with self._progress(len(requests), "request"):
            return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], **_options: Any) -> list[str]:
        """Text after every request's context."""
        with self._progress(len(requests), "request"):
            return super().generate_until(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], **_options: Any) -> list[float]:
        """Log-likelihood of whole texts: in windows that see nothing of each other, or with the state carried on."""
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        with self._progress(sum(lengths), "token"):
            if self._carries:
                return self._rolling_with_state(requests)
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Any, override_bs: int | None = None, **_options: Any
    ) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            window = f"the model's window of {self.max_length:,} tokens"
            raise ValueError(f"an answer of {longest:,} tokens is longer than {window}")
        answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        if override_bs is not None:
            self.advance(sum(len(continuation) for _, _, continuation in requests))
        return answers

    @torch.inference_mode()
    def _rolling_with_state(self, requests: Sequence[Instance]) -> list[float]:
        """As HFLM's, but that a text's windows follow each other with the state carried on; some texts at a time."""
        model = self._trained.ours
        assert model is not None
        size = self._detect_batch_size() if self.batch_size == "auto" else self.batch_size
        texts = [torch.tensor(self.tok_encode(request.args[0]), dtype=torch.long) for request in requests]
        order = sorted((number for number, text in enumerate(texts) if len(text)), key=lambda one: -len(texts[one]))
        totals = torch.zeros(len(texts), dtype=torch.float64)
        for start in range(0, len(order), size):
            chosen = torch.tensor(order[start : start + size])
            targets = [texts[number] for number in chosen.tolist()]
            first = torch.tensor([self.prefix_token_id])
            inputs = [torch.cat([first, text[:-1]]) for text in targets]
            for scored in carried_losses(self._trained, model, inputs, targets, self.max_length):
                totals.index_add_(0, chosen[scored.documents], scored.losses)
                self.advance(len(scored.losses))
        return (-totals).tolist()
