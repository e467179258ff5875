"""A recipe: network, layout, phases, optimizer and what to watch, in one YAML file of strict fields."""

import contextlib
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from megatron_music.errors import InputError
from megatron_music.files import read_yaml, write_text
from megatron_music.recipe.fields import Ratio, RelativePath, Strict
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.mixture import members, solve
from megatron_music.recipe.phase import Loss, Phase

FP8_MULTIPLE = 16
"""All sides of a matrix product in FP8 are multiples of this."""


class Network(Strict):
    """A Llama-2 decoder: untied embeddings, RoPE, RMSNorm, SwiGLU, no biases, grouped-query attention."""

    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    attention_heads: int = Field(gt=0)
    key_value_heads: int = Field(gt=0)
    ffn_hidden_size: int = Field(gt=0)
    position_limit: int = Field(gt=0, description="longest context in tokens that the network is declared for")
    rope_base: float = Field(10000.0, gt=0)
    norm_epsilon: float = Field(1e-5, gt=0)
    init_std: float = Field(0.02, gt=0)

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.attention_heads

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of attention_heads "
                             f"{self.attention_heads}; change one of them")  # fmt: skip
        if self.head_size % 2:
            raise ValueError(f"the head size {self.head_size} is odd, RoPE turns pairs; change attention_heads")
        if self.attention_heads % self.key_value_heads:
            raise ValueError(f"attention_heads {self.attention_heads} is not a multiple of key_value_heads "
                             f"{self.key_value_heads}; change one of them")  # fmt: skip
        return self


class Optimizer(Strict):
    """AdamW with decoupled weight decay and clipping of the global gradient norm."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float = Field(1.0, gt=0)


class Lora(Strict):
    """Low-rank adapters W + alpha / rank x B A on a network that stays as it is (https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(gt=0)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="share of an adapter's input channels left out in training")
    targets: list[Literal["attention", "mlp"]] = Field(["attention", "mlp"], min_length=1)
    full_embeddings: bool = Field(False, description="train the embedding and output matrices as well, as they are")

    @property
    def scale(self) -> float:
        """What the product of an adapter's matrices is multiplied by."""
        return self.alpha / self.rank


class Validation(Strict):
    """Held-out loss by kind of token and by task."""

    source: list[str] = Field(min_length=1, description="one source or several")
    sequences: int = Field(8, gt=0, description="of each source")
    every_steps: int = Field(100, gt=0)

    @field_validator("source", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class InvalidTokens(Strict):
    """Share of ids that may not stand where the model puts them, in short samples drawn while it trains."""

    source: str = Field(description="corpus source whose documents give the prompts")
    positions: int = Field(256, gt=0, description="audio positions sampled each time")
    every_steps: int = Field(100, gt=0)


class AudioSample(Strict):
    """A stretch that the model in training sings freely, to be heard in TensorBoard."""

    source: str = Field(description="corpus source whose documents give the prompts")
    seconds: float = Field(2.0, gt=0)
    weights: str | None = Field(None, description="the codec's folder, checkpoint or hub name; else the corpus' own")
    every_steps: int = Field(1000, gt=0)


class Watch(Strict):
    """What is measured while training."""

    log_every_steps: int = Field(10, gt=0)
    validation: Validation | None = None
    invalid_tokens: InvalidTokens | None = None
    audio_sample: AudioSample | None = None
    wandb: str | None = Field(None, min_length=1, description="project of Weights & Biases that metrics go to as well")
    hang_minutes: float = Field(
        10, gt=0, description="without a step, after which a run is ended; three times that for the first, and saves"
    )


class Skip(Strict):
    """When an update is left out, and when the run goes back to a checkpoint from before and passes the data since.

    Left out is an update whose loss or gradient is not finite, or whose loss is a spike: above the median of the losses
    before by ``deviations`` standard deviations (estimated by the median absolute deviation) and by ``least_nats``.
    """

    deviations: float = Field(10.0, gt=0)
    least_nats: float = Field(0.5, ge=0)
    window_steps: int = Field(128, ge=4, description="steps, of the phase, whose losses are looked at")
    roll_back_after: int = Field(10, gt=0, description="updates left out until the run goes back")
    within_steps: int = Field(100, gt=0, description="... among so many steps")
    most_rollbacks: int = Field(5, ge=0, description="how often the run goes back before it stops with the reason")

    @model_validator(mode="after")
    def _reaches(self) -> Self:
        if self.roll_back_after > self.within_steps:
            raise ValueError(f"roll_back_after {self.roll_back_after} is above within_steps {self.within_steps}, so "
                             "that it never happens; lower it")  # fmt: skip
        return self


class Checkpoints(Strict):
    """When to write checkpoints (besides at the end of every phase), how, and how many to keep."""

    every_steps: int = Field(1000, gt=0)
    asynchronous: bool = Field(True, description="write beside training, which waits for a copy in host memory alone")
    keep: int = Field(2, gt=0, description="latest checkpoints kept; milestones and those that end a phase always are")
    milestones_every_steps: int | None = Field(None, gt=0, description="one more, kept for ever, every so many steps")
    milestones_every_tokens: int | None = Field(None, gt=0, description="the same by tokens of the run")


class Recipe(Strict):
    """Everything that a training run does; the resolved recipe is enough to run it again."""

    name: str = Field(min_length=1)
    seed: int = Field(1, ge=0)
    vocabulary: RelativePath
    corpus: RelativePath
    run: RelativePath
    precision: Literal["bf16", "fp32", "fp8-delayed", "fp8-tensorwise", "fp8-blockwise"] = Field(
        "bf16", description="of activations and weights; fp8-*: BF16 with the layers' matrix products in FP8, by how "
        "it is scaled")  # fmt: skip
    network: Network
    layout: Layout = Layout()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = Field(None, description="train adapters alone; `train --from` names the network below them")
    groups: dict[str, list[str]] = Field({}, description="names that ratios use for sets of sources, by patterns")
    attention: Literal["across_documents", "within_documents"] = Field(
        "across_documents", description="whether it reaches back over the `<EOD>` of documents that share a sequence"
    )
    loss: Loss = Loss()
    phases: list[Phase] = Field(min_length=1)
    most_epochs: dict[str, Ratio] = Field({}, description="how often sources may repeat in the whole run; else freely")
    watch: Watch = Watch()
    skip: Skip = Skip()
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("phases")
    @classmethod
    def _names_differ(cls, phases: list[Phase]) -> list[Phase]:
        names = [phase.name for phase in phases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two phases are named {twice!r}; give each its own name")
        return phases

    @model_validator(mode="after")
    def _fits(self) -> Self:
        network, layout = self.network, self.layout
        for field in ("attention_heads", "key_value_heads", "ffn_hidden_size"):
            if getattr(network, field) % layout.tensor:
                raise ValueError(f"layout.tensor {layout.tensor} does not divide network.{field} "
                                 f"{getattr(network, field)}; choose a divisor")  # fmt: skip
        stages = layout.pipeline * layout.interleave
        if network.layers % stages:
            raise ValueError(f"network.layers {network.layers} is not a multiple of layout.pipeline x "
                             f"layout.interleave = {stages}; change one of them")  # fmt: skip
        if (layout.recompute_layers or 0) > network.layers // stages:
            raise ValueError(f"layout.recompute_layers {layout.recompute_layers} is above the "
                             f"{network.layers // stages} layers of a stage; lower it, or leave it out for all of "
                             "them")  # fmt: skip
        ours = self.needs_own_layers
        if ours is not None and self.needs_transformer_engine is not None:
            raise ValueError(f"{self.needs_transformer_engine} needs Transformer Engine's layers, which take no "
                             f"`{ours}`; leave one of them out")  # fmt: skip
        if self.fp8_scaling is not None:
            for field in ("hidden_size", "ffn_hidden_size"):
                share, rest = divmod(getattr(network, field), layout.tensor)
                if rest or share % FP8_MULTIPLE:
                    raise ValueError(f"{self.precision} needs network.{field} / layout.tensor in multiples of "
                                     f"{FP8_MULTIPLE}, not {share}; change one of them")  # fmt: skip
        for field, is_set in (("layout.cuda_graphs", layout.cuda_graphs), ("layout.context", layout.context > 1)):
            if self.attention == "within_documents" and is_set:
                raise ValueError(f"{field} needs sequences that are all cut alike, attention: within_documents cuts "
                                 "each at its own documents; leave one of them out")  # fmt: skip
        for phase in self.phases:
            where = f"phase {phase.name!r}: "
            own_tokens = phase.micro_batch_sequences * phase.context_tokens // layout.context
            if self.fp8_scaling is not None and own_tokens % (FP8_MULTIPLE * (layout.tensor if layout.sequence else 1)):
                raise ValueError(f"{where}{self.precision} needs a process' tokens of a micro-batch in multiples of "
                                 f"{FP8_MULTIPLE}; change context_tokens, micro_batch_sequences or layout")  # fmt: skip
            if phase.context_tokens > network.position_limit:
                raise ValueError(f"{where}context_tokens {phase.context_tokens} is above network.position_limit "
                                 f"{network.position_limit}; raise the limit or shorten the context")  # fmt: skip
            if layout.context > 1 and phase.context_tokens % (2 * layout.context):
                raise ValueError(f"{where}context_tokens {phase.context_tokens} is not a multiple of 2 x "
                                 f"layout.context = {2 * layout.context}; change one of them")  # fmt: skip
            if layout.sequence and phase.context_tokens % (layout.tensor * layout.context):
                raise ValueError(f"{where}context_tokens {phase.context_tokens} is not a multiple of layout.tensor x "
                                 f"layout.context = {layout.tensor * layout.context}, which layout.sequence "
                                 "needs; change one of them")  # fmt: skip
            for sequences in phase.batch_sizes:
                if sequences % phase.micro_batch_sequences:
                    field, batch = _batch(phase, sequences)
                    raise ValueError(f"{where}{field}: {batch} is not a multiple of micro_batch_sequences "
                                     f"{phase.micro_batch_sequences}; change one")  # fmt: skip
        return self

    @property
    def is_bf16(self) -> bool:
        """Whether weights and activations are BF16, with master weights and gradients in FP32; else all is FP32."""
        return self.precision != "fp32"

    @property
    def fp8_scaling(self) -> Literal["delayed", "tensorwise", "blockwise"] | None:
        """How numbers are scaled into FP8's range: by earlier steps' largest, the tensor's, or that of each block."""
        return self.precision.removeprefix("fp8-") if self.precision.startswith("fp8-") else None

    @property
    def needs_transformer_engine(self) -> str | None:
        """The first of the fields that only Transformer Engine's layers can serve, with its value."""
        if self.fp8_scaling is not None:
            return f"precision: {self.precision}"
        return "layout.tensor_overlap: true" if self.layout.tensor_overlap else None

    @property
    def needs_own_layers(self) -> str | None:
        """The first of the fields that Transformer Engine's layers can't serve here."""
        if self.lora is not None:
            return "lora"
        return "attention: within_documents" if self.attention == "within_documents" else None

    def loss_of(self, phase: Phase) -> Loss:
        """Which tokens count in the loss of a phase."""
        return self.loss if phase.loss is None else phase.loss

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources of all phases, in the order in which the recipe first names them."""
        return tuple(dict.fromkeys(name for phase in self.phases for name in phase.mixture.names))

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        sources = self.source_names
        for name in self.groups:
            if name in sources:
                raise ValueError(f"groups: {name} is also a source; give the group another name")
        for field, names in (("groups", self.groups), ("most_epochs", self.most_epochs)):
            for name in names:
                if not members(name, sources, self.groups):
                    raise ValueError(f"{field}: {name} holds no source of any phase; mend it (sources: "
                                     f"{', '.join(sources)})")  # fmt: skip
        for phase in self.phases:
            try:
                solve(phase.mixture, self.groups)
            except ValueError as error:
                raise ValueError(f"phase {phase.name!r}: mixture: {error}") from None
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> "Recipe":
        """Reads a recipe and applies ``a.b=c`` overrides; raises InputError naming the field and the mend."""
        content = read_yaml(path)
        for override in overrides or []:
            _apply(content, override)
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: dict[str, Any], path: str | Path) -> "Recipe":
        """Validates the content of a recipe file at ``path``, from whose folder its relative paths start."""
        return parse_strict(cls, content, path)

    def save(self, path: str | Path) -> None:
        """Writes the resolved recipe as YAML that ``load`` reads back equal."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True))

    def data_processes(self, processes: int) -> int:
        """Copies of the model on ``processes`` processes; raises InputError where layout or batches do not divide."""
        layout = self.layout
        if processes % layout.model_processes:
            raise InputError("layout", f"{processes} processes are not a multiple of tensor x pipeline x context = "
                             f"{layout.model_processes}",
                             "change --processes, or how many the launcher starts, or the layout")  # fmt: skip
        copies = processes // layout.model_processes
        for index, phase in enumerate(self.phases):
            for sequences in phase.batch_sizes:
                field, batch = _batch(phase, sequences)
                where = f"phases[{index}].{field}"
                micro_batches, rest = divmod(sequences, copies * phase.micro_batch_sequences)
                if rest:
                    raise InputError(where, f"{batch} is not a multiple of {copies} data-parallel processes x "
                                     f"micro_batch_sequences {phase.micro_batch_sequences}",
                                     "change one of them")  # fmt: skip
                if layout.interleave > 1 and micro_batches % layout.pipeline:
                    raise InputError(where, f"{batch} gives {micro_batches} micro-batches a process, not a multiple of "
                                     f"layout.pipeline {layout.pipeline}, which layout.interleave needs",
                                     "change the batch")  # fmt: skip
        return copies


@contextlib.contextmanager
def naming_faults(path: str | Path) -> Iterator[None]:
    """Within it, faults that show only beside processes, corpus or hardware name the recipe's file before the field."""
    try:
        yield
    except InputError as error:
        if re.split(r"[.\[]", error.where)[0] in Recipe.model_fields:
            raise InputError(f"{path}: {error.where}", error.what, error.mend) from None
        raise


def _batch(phase: Phase, sequences: int) -> tuple[str, str]:
    """Field and value of a batch, for an error: the phase's whole one or one on the way there."""
    if sequences == phase.batch_sequences:
        return "batch_sequences", str(sequences)
    return "batch_ramp", f"a batch of {sequences} on the way to {phase.batch_sequences}"


def parse_strict(model: type[Strict], content: dict[str, Any], path: str | Path) -> Any:
    """Validates ``content`` of the file at ``path`` against ``model``; its first fault becomes an InputError."""
    try:
        return model.model_validate(content, context={"folder": Path(path).resolve().parent})
    except ValidationError as error:
        # A misspelt field is also a missing one; its own spelling tells more.
        fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    where = f"{path}: {field}" if field else str(path)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"known fields here: {', '.join(known)}"
        raise InputError(where, "unknown field", mend)
    if fault["type"] == "missing":
        raise InputError(where, "missing field", "add it")
    if fault["type"] == "value_error":
        raise InputError(where, str(fault["ctx"]["error"]))
    raise InputError(where, f"found {fault['input']!r}", _mend(fault))


def _mend(fault: ErrorDetails) -> str:
    """What to write where a value is of the wrong type or out of range."""
    limits = fault.get("ctx", {})
    mends = {
        "greater_than": "write a number above {gt:g}",
        "greater_than_equal": "write {ge:g} or more",
        "less_than": "write a number below {lt:g}",
        "less_than_equal": "write {le:g} or less",
        "literal_error": "choose {expected}",
        "finite_number": "write a finite number",
        "too_short": "write at least {min_length} of them",
        "string_too_short": "write some text",
    }
    if fault["type"] in mends:
        return mends[fault["type"]].format(**limits)
    types = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text",
             "list": "a list", "dict": "`name: value` lines", "model": "`name: value` lines"}  # fmt: skip
    kind = types.get(fault["type"].split("_")[0])
    return f"write {kind}" if kind else fault["msg"]


def _fields_at(model: type[Strict], location: tuple) -> list[str]:
    """Names of the fields of the sub-model that a validation error's location leads to."""
    for part in location:
        if part not in model.model_fields:  # an item of a list, or a name of a mapping
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Strict)), model)
    return list(model.model_fields)


def _apply(content: dict[str, Any], override: str) -> None:
    """Sets ``a.b=c`` in the nested ``content``; list items go by index or by their ``name``."""
    where = f"--set {override}"
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise InputError(where, "is not of the form a.b=c", "write for example --set phases.0.tokens=1M")
    *parents, last = path.split(".")
    node: Any = content
    for part in [*parents, None]:
        key = last if part is None else part
        if isinstance(node, list):
            names = [str(item.get("name")) if isinstance(item, dict) else None for item in node]
            if key in names:
                key = names.index(key)
            elif key.isdigit() and int(key) < len(node):
                key = int(key)
            else:
                raise InputError(where, f"there is no item {key!r}", f"choose one of {names} or an index")
        elif not isinstance(node, dict):
            raise InputError(where, f"{key!r} lies under a plain value", "name a field of a mapping")
        if part is None:
            node[key] = yaml.safe_load(text)
        else:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
