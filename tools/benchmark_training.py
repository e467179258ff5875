"""Tokens a second of a training step, ours and beside it a plain PyTorch loop over transformers' LlamaForCausalLM.

Both start from the same weights, see the same tokens in the same micro-batches, clip at the same norm and update with
a fused AdamW of the same settings; they take turns in one process, so that whatever else the machine does falls on
both. FLOPs a token = 6 x (parameters that multiply) + 6 x layers x hidden x context (docs/benchmarks.md), and MFU is
their rate over the dense BF16 peak of a known GPU.

    python tools/benchmark_training.py --peer transformers
    python tools/benchmark_training.py --recipe examples/yue_0.5b.yaml --peer transformers --profile
    python tools/benchmark_training.py --recipe examples/yue_0.5b.yaml --peer transformers --precision fp8-delayed
    python tools/benchmark_training.py --recipe examples/yue_7b.yaml --peer transformers --slice-layers 4
    torchrun --nproc-per-node 8 tools/benchmark_training.py --recipe examples/yue_0.5b.yaml

A recipe is measured with its network, layout, precision and first phase, with few sequences a step (``--batch``). The
peer knows no FP8: beside a run of ours in FP8 it computes in BF16. On a GPU torch compiles it.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from training_loop import own_share, small_recipe, told

from megatron_music.cluster.memory import memory_by_rank
from megatron_music.engine import processes
from megatron_music.engine.hardware import check_hardware
from megatron_music.engine.launchers import read_start
from megatron_music.recipe.flops import flops_per_token, parameter_count
from megatron_music.recipe.gpus import gpu_of_device
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.recipe import Recipe
from megatron_music.vocabulary.vocabulary import Vocabulary

Step = Callable[[list[np.ndarray]], torch.Tensor]
"""Takes the micro-batches of one optimizer step, (sequences, context + 1) ids each; returns the mean loss, ()."""


@dataclass
class Contender:
    """One of those that take turns.

    Attributes:
        losses: mean loss of every step.
        seconds: of a step, by round.
        peak_bytes: most GPU memory that it held in its first steps; 0 on a CPU.
    """

    name: str
    step: Step
    losses: list[float]
    seconds: list[float]
    peak_bytes: int


def main() -> None:
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe, vocabulary_size = recipe_of(options)
    check_hardware(recipe)
    processes.join(recipe.layout)
    world, first = torch.distributed.get_world_size(), torch.distributed.get_rank() == 0
    recipe.data_processes(world)
    if options.peer and world > 1:
        raise SystemExit("--peer compares one process with one process; start it without torchrun")
    engine, ours = our_step(recipe, vocabulary_size)
    weights = llama_weights(engine, recipe) if options.peer else {}
    batches = random_steps(recipe, vocabulary_size, engine, options.warmup + options.rounds * options.steps)
    contenders = [warmed("megatron-music", ours, 0, batches[: options.warmup])]
    if options.peer:
        before = allocated()
        theirs = peer_step(recipe, vocabulary_size, weights, engine.device)
        contenders.append(warmed("transformers", theirs, before, batches[: options.warmup]))
    race(contenders, batches[options.warmup :], options)
    if first:
        report(recipe, vocabulary_size, contenders)
    shares = own_share(recipe, vocabulary_size, engine, options.rounds, options.steps)
    if first:
        print(told(shares))
    if options.profile:
        profile(ours, batches[0], first)
    processes.leave()


def allocated(most: bool = False) -> int:
    """Bytes that torch holds on the GPU now, or held at most since the last reset."""
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()


def warmed(name: str, step: Step, before: int, batches: list[list[np.ndarray]]) -> Contender:
    """A contender after its first steps, with what it took on top of the ``before`` bytes of others."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    losses = [float(step(batch)) for batch in batches]
    return Contender(name, step, losses, [], allocated(most=True) - before)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["transformers"], help="run this beside ours, in turns")
    parser.add_argument("--recipe", help="take network, layout, precision and the first phase's batch from this file")
    parser.add_argument("--slice-layers", type=int, help="of a recipe's network only so many layers, on one process")
    parser.add_argument("--profile", action="store_true", help="print what takes the time of one of our steps")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--key-value-heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=704)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--context", type=int, help="tokens of a sequence (default: 1,024, or the recipe's)")
    parser.add_argument("--batch", type=int, help="sequences of an optimizer step (default: 4 a data-parallel process)")
    parser.add_argument("--micro-batch", type=int, help="sequences of a forward pass (default: 1, or the recipe's)")
    parser.add_argument("--precision", help="as in a recipe (default: fp32, or the recipe's)")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of each contender in a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps before the first round")
    parser.add_argument("--threads", type=int, help="threads of a process (default: all cores)")
    return parser.parse_args()


def recipe_of(options: argparse.Namespace) -> tuple[Recipe, int]:
    """The recipe to run, of one phase, and the vocabulary's padded size."""
    if options.recipe:
        whole = Recipe.load(options.recipe)
        content, size = whole.model_dump(mode="json"), Vocabulary.load(whole.vocabulary).padded_size
        content["phases"] = content["phases"][:1]
        if options.slice_layers:
            content["network"]["layers"] = options.slice_layers
            content["layout"] = {}
    else:
        small = small_recipe(
            hidden=options.hidden,
            layers=options.layers,
            heads=options.heads,
            key_value_heads=options.key_value_heads,
            ffn=options.ffn,
            context=1024,
            sequences=1,
        )
        content, size = small.model_dump(mode="json"), options.vocabulary
    phase = content["phases"][0]
    phase |= {"mixture": {"random": 1}, "batch_ramp": None}
    if options.context:
        phase["context_tokens"] = options.context
        content["network"]["position_limit"] = max(options.context, content["network"]["position_limit"])
    if options.micro_batch:
        phase["micro_batch_sequences"] = options.micro_batch
    copies = read_start(os.environ).size // (Layout(**content["layout"]).model_processes)
    phase["batch_sequences"] = options.batch or 4 * max(1, copies) * phase["micro_batch_sequences"]
    phase["learning_rate"] = 3e-4
    content |= {"precision": options.precision or content["precision"], "groups": {}, "most_epochs": {}, "watch": {}}
    return Recipe.parse(content, options.recipe or "benchmark.yaml"), size


def our_step(recipe: Recipe, vocabulary_size: int) -> tuple[object, Step]:
    from megatron_music.engine.engine import Batch, Engine

    engine = Engine(recipe, vocabulary_size)
    learning_rate = recipe.phases[0].learning_rate.start

    def step(micro_batches: list[np.ndarray]) -> float:
        table = engine.forward_backward([Batch(ids, np.zeros(ids.shape, np.uint8)) for ids in micro_batches])
        return engine.step(learning_rate, table).loss

    return engine, step


def peer_step(recipe: Recipe, vocabulary_size: int, weights: dict[str, torch.Tensor], device: torch.device) -> Step:
    """The plain loop. In BF16 it computes under autocast on FP32 weights, as ours keeps FP32 master weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    network, options = recipe.network, recipe.optimizer
    model = LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=network.hidden_size,
            num_hidden_layers=network.layers,
            num_attention_heads=network.attention_heads,
            num_key_value_heads=network.key_value_heads,
            intermediate_size=network.ffn_hidden_size,
            max_position_embeddings=network.position_limit,
            rms_norm_eps=network.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": network.rope_base},
            use_cache=False,
            tie_word_embeddings=False,
        ),
        attn_implementation="sdpa",
    )
    model.load_state_dict(weights)
    model.to(device).train()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=recipe.phases[0].learning_rate.start,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=True,
    )
    # The loop that people write keeps FP32 weights and lets autocast choose what is computed in BF16.
    run = torch.compile(model) if device.type == "cuda" else model

    def step(micro_batches: list[np.ndarray]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for ids in micro_batches:
            tokens = torch.from_numpy(ids).to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.is_bf16):
                logits = run(tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            (loss / len(micro_batches)).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm, foreach=True)
        optimizer.step()
        return total / len(micro_batches)

    return step


def llama_weights(engine, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Copies of our weights under transformers' names, in FP32 on the CPU."""
    module = engine.chunks[0]
    while hasattr(module, "module"):
        module = module.module
    ours = {
        name: value.to("cpu", torch.float32, copy=True)
        for name, value in module.state_dict().items()
        if torch.is_tensor(value)
    }
    fused_norms = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in ours
    groups, size = recipe.network.key_value_heads, recipe.network.head_size
    weights = {
        "model.embed_tokens.weight": ours["embedding.word_embeddings.weight"],
        "model.norm.weight": ours["decoder.final_layernorm.weight"],
        "lm_head.weight": ours["output_layer.weight"],
    }
    for layer in range(recipe.network.layers):
        source, target = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        # Each group holds the rows of its query heads, its key and its value.
        grouped = ours[source + "self_attention.linear_qkv.weight"].view(groups, -1, recipe.network.hidden_size)
        query, key, value = grouped.split([grouped.shape[1] - 2 * size, size, size], dim=1)
        gate, up = ours[source + "mlp.linear_fc1.weight"].chunk(2)
        before_attention, before_mlp = (
            ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
            if fused_norms
            else ("input_layernorm.weight", "pre_mlp_layernorm.weight")
        )
        weights |= {
            target + "self_attn.q_proj.weight": query.flatten(0, 1),
            target + "self_attn.k_proj.weight": key.flatten(0, 1),
            target + "self_attn.v_proj.weight": value.flatten(0, 1),
            target + "self_attn.o_proj.weight": ours[source + "self_attention.linear_proj.weight"],
            target + "mlp.gate_proj.weight": gate,
            target + "mlp.up_proj.weight": up,
            target + "mlp.down_proj.weight": ours[source + "mlp.linear_fc2.weight"],
            target + "input_layernorm.weight": ours[source + before_attention],
            target + "post_attention_layernorm.weight": ours[source + before_mlp],
        }
    return weights


def random_steps(recipe: Recipe, vocabulary_size: int, engine, steps: int) -> list[list[np.ndarray]]:
    """Micro-batches of this process: tokens of a Zipf law, every second one told by the one before it."""
    phase = recipe.phases[0]
    generator = np.random.default_rng(1)
    shares = 1.0 / np.arange(1, vocabulary_size + 1)
    follower = generator.permutation(vocabulary_size)
    size = phase.micro_batch_sequences
    batches = []
    for _ in range(steps):
        shape = (phase.batch_sequences, phase.context_tokens + 1)
        ids = generator.choice(vocabulary_size, shape, p=shares / shares.sum())
        ids[:, 1::2] = follower[ids[:, 0:-1:2]]
        own = np.split(ids, engine.data_processes)[engine.data_rank]
        batches.append([own[first : first + size] for first in range(0, len(own), size)])
    return batches


def race(contenders: list[Contender], batches: list[list[np.ndarray]], options: argparse.Namespace) -> None:
    """Runs every contender over all ``batches``, in turns."""
    for round_index in range(options.rounds):
        first = round_index * options.steps
        # Who went last goes first in the next round: neither always runs in the other's wake.
        for contender in contenders if round_index % 2 == 0 else reversed(contenders):
            started = now()
            losses = [contender.step(batch) for batch in batches[first : first + options.steps]]
            contender.seconds.append((now() - started) / options.steps)
            contender.losses += map(float, losses)


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def profile(step: Step, batch: list[np.ndarray], prints: bool) -> None:
    """Prints the operations of one step that take most of the device's time, and how long it idles."""
    on_gpu = torch.cuda.is_available()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if on_gpu else [])]) as run:
        started = now()
        step(batch)
        elapsed = now() - started
    if not prints:
        return
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    averages = run.key_averages()
    print(averages.table(sort_by=order, row_limit=25, max_name_column_width=60))
    if on_gpu:
        busy = sum(event.self_device_time_total for event in averages) / 1e6
        print(f"the GPU computed for {busy:.3f} of {elapsed:.3f} s; queues of several streams count twice")


def report(recipe: Recipe, vocabulary_size: int, contenders: list[Contender]) -> None:
    network, phase = recipe.network, recipe.phases[0]
    world = torch.distributed.get_world_size()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    flops = flops_per_token(network, vocabulary_size, phase.context_tokens)
    print(
        f"{datetime.date.today()}  {world} x {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"hidden {network.hidden_size}, {network.layers} layers, {network.attention_heads} heads "
        f"({network.key_value_heads} for keys and values), ffn {network.ffn_hidden_size}, vocabulary "
        f"{vocabulary_size}: {parameter_count(network, vocabulary_size):,} parameters\n"
        f"{recipe.precision}, context {phase.context_tokens}, {phase.batch_sequences} sequences a step in "
        f"micro-batches of {phase.micro_batch_sequences}\n"
        f"{flops / 1e6:.1f} MFLOP a token (causal attention at half the square)"
    )
    gpu = gpu_of_device(device)
    for contender in contenders:
        speeds = [phase.step_tokens / value / world for value in contender.seconds]
        speed = statistics.median(speeds)
        mfu = f", MFU {speed * flops / gpu.bf16_flops:.1%} of BF16's peak" if gpu and recipe.is_bf16 else ""
        memory = f", at most {contender.peak_bytes / 2**30:.2f} GiB" if contender.peak_bytes else ""
        print(
            f"{contender.name:15} {speed:9,.0f} tokens/s a process (median of {len(speeds)} rounds, {min(speeds):,.0f} "
            f"to {max(speeds):,.0f}), {speed * flops / 1e12:.3f} TFLOP/s{mfu}{memory}"
        )
    planned = memory_by_rank(recipe, vocabulary_size, world, [0], "cuda" if torch.cuda.is_available() else "cpu")[0]
    print(f"{'`plan` expects':15} at most {planned.allocated / 2**30:.2f} GiB of megatron-music")
    for contender in contenders:
        curve = contender.losses
        shown = [curve[round(index)] for index in np.linspace(0, len(curve) - 1, 6)]
        print(f"{contender.name:15} loss over {len(curve)} steps: " + " ".join(f"{loss:.5f}" for loss in shown))
    if len(contenders) == 2:
        ours, theirs = contenders
        differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
        print(f"largest difference of a step's loss {max(differences):.2e}")
        ratios = [theirs / ours for ours, theirs in zip(ours.seconds, theirs.seconds, strict=True)]
        print(f"ratio by round {min(ratios):.2f} to {max(ratios):.2f}")
        print(f"ratio {statistics.median(ratios):.2f}")


def cpu_name() -> str:
    """The processor as Linux names it."""
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


if __name__ == "__main__":
    main()
