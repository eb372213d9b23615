"""Any task of EleutherAI's lm-evaluation-harness under an intervention of this package.

Importing this module makes the model `mi_massive` known to the harness:

    import lm_eval, mi_massive.harness

    arguments = "pretrained=smollm2-135m-instruct,preset=paper,k=4"
    lm_eval.simple_evaluate(model="mi_massive", model_args=arguments, tasks=["arc_easy"])

The harness finds models in a table of its own and among those imported before, and has no entry
points: its command knows `mi_massive` only as `mi-massive lm-eval`, which hands all arguments on.

What is prompt is as in `mi_massive.evaluate`: the context of a request is the prompt, edited when
it is read, and what is scored or generated after it is decode. A request without a context
(`loglikelihood_rolling`, or an empty text before the options) has no prompt but a text: it is read
whole as one, as `measure_effects` reads neutral text. Its one prefix token would be its own mean.
Padding is never read or edited; batch size changes nothing but rounding. With nothing edited the
numbers are those of the harness's own model `hf` in float32.

Does not show: chance, an interval on the change, or a control. Run a control's preset on the same
tasks, and see `mi_massive.run_disruption` for the paired comparison.
"""

import json
import logging
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from tqdm import tqdm

from mi_massive import _harness_arguments as meaning
from mi_massive._logs import without_warnings
from mi_massive._prompt_batches import generating
from mi_massive.interventions import Intervention, disrupt
from mi_massive.models import HookedModel
from mi_massive.models.passes import stating_prompt
from mi_massive.token_scores import TokenScores, score_continuations, score_texts

try:
    from lm_eval import utils
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api import registry
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise RuntimeError(
        f"the extra 'lm-eval' must be installed to run tasks of the harness, got no {error.name}; "
        "run `pip install 'mi-massive[lm-eval]'`"
    ) from error

_Base: Any = HFLM  # its decorator hides its type, and `super()` has none then
_register: Any = registry
_utils: Any = utils
_logger = logging.getLogger(f"lm_eval.{__name__}")
_IDENTITY: Final = "mi_massive"
"""Key of a cache of answers under which stands whose they are."""


@_register.register_model("mi_massive")
class DisruptedLM(_Base):
    """A model of this package as the harness wants it, edited while it answers.

    Attributes:
        hooked: The model.
        arm: The named edit, with the strength found where it is matched; None if there is none.
        intervention: What is edited; None leaves the model intact.
        n_edits: Entries edited so far.
    """

    def __init__(
        self,
        pretrained: str | HookedModel,
        *,
        preset: str | None = None,
        k: int | None = None,
        seed: int | None = None,
        layers: meaning.Layers = None,
        intervention: Intervention | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        """Load the model and make the edit ready.

        Args:
            pretrained: As for `load_model`, or a model from it.
            preset: Name of an arm, see `mi-massive presets`; None leaves the model intact.
            k: Dimensions of each head; None takes the preset's own number.
            seed: Of presets that draw their dimensions; None is 0.
            layers: A block, a range such as `3-9` or a list of blocks; None is all.
            intervention: In place of a preset, for Python alone.
            device: Such as `cpu` or `cuda:0`; as the harness does, the CPU is taken where torch
                finds no CUDA, which its command asks for unless told otherwise.
            dtype: float32 (None), bfloat16 or float16.
            revision: Branch, tag or commit of a hub model.
            trust_remote_code: Whether the model's own Python files may run.
            batch_size: Prompts of a batch; the options of a question share its prompt.
            options: As for the harness's model `hf`: `max_length`, `truncation`, `add_bos_token`,
                `prefix_token_id`, `chat_template_args`, `enable_thinking`, `think_end_token`.

        Raises:
            ValueError: If an argument does not exist, means nothing beside the others, or the
                preset's strength cannot be matched on this model.
            UnsupportedModelError: If the model cannot answer.
        """
        meaning.require_known(options)
        options = meaning.of_kinds(options)
        n_batch = meaning.whole_number("batch_size", batch_size)
        meaning.require_sense(preset, k=k, seed=seed, layers=layers, intervention=intervention)
        self.hooked = meaning.loaded(
            pretrained,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        plain = generating(self.hooked)
        self.arm = meaning.chosen_arm(self.hooked, preset, k=k, seed=seed)
        self.intervention = self.arm.intervention if self.arm else intervention
        if self.intervention is not None:
            self.intervention = meaning.in_layers(self.intervention, layers)
            meaning.require_ready(self.hooked, self.intervention)
        self._options = options
        self.n_edits = 0
        with without_warnings("lm_eval.models.huggingface"):  # that it got a model and not a name
            super().__init__(
                plain,
                backend="causal",
                tokenizer=meaning.own_tokenizer(self.hooked, options),
                batch_size=n_batch,
                **options,
            )

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "DisruptedLM":
        """The model that a line such as `pretrained=smollm2-135m-instruct,preset=paper` means."""
        return cls.create_from_arg_obj(
            _utils.simple_parse_args_string(arg_string), additional_config
        )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "DisruptedLM":
        """The model that arguments by name mean, with what the harness gives beside them."""
        return cls(**meaning.told(arg_dict, additional_config or {}))

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is greedy."""
        with self._editing(requests):
            return _Base.loglikelihood(self, requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, read in windows that are a prompt each."""
        with self._editing(requests):
            return _Base.loglikelihood_rolling(self, requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to each context, up to a stop text."""
        with self._editing(requests):
            return _Base.generate_until(self, requests, disable_tqdm=disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """What stands in the results: the model, the edit, and how much was edited."""
        weights = self.hooked.plain
        return {
            "model_num_parameters": weights.num_parameters(),
            "model_dtype": weights.dtype,
            "model_revision": self.hooked.revision,
            "model_sha": self.hooked.revision,
            "mi_massive": {
                **self._identity(),
                "device": str(self.hooked.device),
                "entries_edited": self.n_edits,
            },
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take a cache of answers, if they are of this model under this edit.

        Raises:
            ValueError: If they are not; the harness itself knows answers by their question alone.
        """
        super().set_cache_hook(cache_hook)
        answers = cache_hook.dbdict
        if answers is None:
            return
        own = json.dumps(self._identity(), sort_keys=True)
        found = answers.get(_IDENTITY, None if len(answers) else own)
        if found != own:
            raise ValueError(
                "use_cache must name a file of answers of the same model under the same edit, got "
                f"one of {found or 'a model of the harness'}; choose another name"
            )
        answers[_IDENTITY] = own

    def _identity(self) -> dict[str, Any]:
        edit = {} if self.intervention is None else self.intervention.settings()
        return {
            "model": self.hooked.name,
            "revision": self.hooked.revision,
            "dtype": str(self.hooked.plain.dtype),
            "arm": self.arm.name if self.arm else "intervention" if edit else "intact",
            **self._options,
            **edit,
        }

    @contextmanager
    def _editing(self, requests: Sequence[Any]) -> Generator[None, None, None]:
        """Edit what runs inside; an edit that does not happen is an error, from `disrupt`."""
        if self.intervention is None or not requests:
            yield
            return
        with disrupt(self.hooked, self.intervention) as edits:
            yield
        self.n_edits += edits.total

    # What the harness calls on the way.

    def _loglikelihood_tokens(
        self,
        requests: Iterable[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score token ids: on the cache of their context, or as a text where there is none."""
        asked = [(key, *self._fitting(context, wanted)) for key, context, wanted in requests]
        texts = [i for i, (key, _, _) in enumerate(asked) if key is None or key[0] == ""]
        prompts: dict[tuple[int, ...], list[int]] = {}
        for i in sorted(set(range(len(asked))) - set(texts)):
            prompts.setdefault(tuple(asked[i][1]), []).append(i)
        found: dict[int, TokenScores] = {}
        with tqdm(
            total=len(texts) + len(prompts),
            disable=disable_tqdm or override_bs is not None,
            desc="Running loglikelihood requests",
        ) as bar:
            how: dict[str, Any] = {"batch_size": self.batch_size, "on_progress": bar.update}
            if texts:
                whole = [[*asked[i][1], *asked[i][2]] for i in texts]
                n_scored = [len(asked[i][2]) for i in texts]
                scores = score_texts(self.hooked, whole, n_scored, **how)
                found.update(zip(texts, scores, strict=True))
            if prompts:
                wanted = [[asked[i][2] for i in own] for own in prompts.values()]
                by_prompt = score_continuations(self.hooked, list(prompts), wanted, **how)
                for own, each in zip(prompts.values(), by_prompt, strict=True):
                    found.update(zip(own, each, strict=True))
        answers = [(sum(found[i].log_probs), found[i].greedy) for i in range(len(asked))]
        for (key, _, _), answer in zip(asked, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def _fitting(self, context: list[int], wanted: list[int]) -> tuple[list[int], list[int]]:
        """A request cut from the left to what the model can read, as `hf` cuts it."""
        room = self.max_length + 1 - len(wanted)
        if room < 1:
            raise ValueError(
                f"a continuation must fit the {self.max_length} tokens that the model can read, "
                f"got {len(wanted)}; shorten it"
            )
        if len(context) > room:
            _logger.warning(
                "A context of %d tokens with %d to score exceeds the %d that the model can read; "
                "its beginning is cut off.",
                *(len(context), len(wanted), self.max_length),
            )
        return context[-room:], wanted

    def _model_generate(
        self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """Continue a batch of contexts, which are the prompt whatever follows."""
        with stating_prompt(context.shape[1]):
            return _Base._model_generate(self, context, max_length, stop, **generation_kwargs)


def run_command(arguments: Sequence[str]) -> None:
    """Run the harness's own command line, to which the model `mi_massive` is known by now.

    Args:
        arguments: As after `lm-eval`.
    """
    before, sys.argv = sys.argv, ["lm-eval", *arguments]  # all that the harness reads them from
    try:
        cli_evaluate()
    finally:
        sys.argv = before
