"""Both stages of generation beside `generate()` called as the published program calls it, on the same random weights.

Stage 1: for every section the whole song so far is handed to `generate()`, which guides with a second pass over the
network (transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor). Beside the ids that the program blocks it may
write whole frames of codebook 0 only, so that both are asked for the same. All greedy tokens have to be equal.

Stage 2: for every frame the whole prefix of all windows is handed to `generate()` for 7 new tokens, ids of codebooks 1
to 7 allowed. It writes ids of wrong codebooks as well, and goes on from them; so its own ids are then read back, and
wherever one belongs to the codebook that is due, it has to be the one that is chosen here behind the same ids.

    python tools/benchmark_generation.py
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from megatron_music.generation.decoder import LlamaDecoder
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.plan import Plan
from megatron_music.generation.sampling import SamplingSettings
from megatron_music.generation.stage1 import sing
from megatron_music.generation.stage2 import WindowForm, refine
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.vocabulary import Vocabulary

CODEBOOKS, HEADER_TOKENS, TEXT_TOKENS = 8, 300, 60


class Blocked(LogitsProcessor):
    """Blocks a range of ids as the published program does: by a list of them."""

    def __init__(self, start: int, stop: int):
        self.ids = list(range(start, stop))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.ids] = -torch.inf
        return scores


class Allowed(LogitsProcessor):
    """Lets only the ids pass that ``mask(new tokens so far)`` allows."""

    def __init__(self, mask, prompt_length: int):
        self.mask, self.prompt_length = mask, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~self.mask(input_ids.shape[1] - self.prompt_length), -torch.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, default=Path("tokenizers/yue.yaml"))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--segments", type=int, default=4, help="of stage 1")
    parser.add_argument("--tokens", type=int, default=600, help="a segment")
    parser.add_argument("--frames", type=int, default=300, help="of a window of stage 2")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stage", type=int, choices=[1, 2], help="measure one stage alone")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    vocabulary = Vocabulary.load(options.vocabulary)
    network = random_network(vocabulary, options.hidden, options.layers)
    print(f"{sum(weight.numel() for weight in network.parameters()) / 1e6:.1f}M parameters, ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.stage != 2:
        ratios = [race_stage1(network, vocabulary, options) for _ in range(options.rounds)]
        first = f"stage 1 ratio {statistics.median(ratios):.2f}"
    if options.stage != 1:
        ratios = [race_stage2(network, vocabulary, options) for _ in range(options.rounds)]
        second = f"stage 2 ratio {statistics.median(ratios):.2f}"
    print("\n".join(([first] if options.stage != 2 else []) + ([second] if options.stage != 1 else [])))


def random_network(vocabulary: Vocabulary, hidden: int, layers: int) -> LlamaForCausalLM:
    """A network whose hidden states neither vanish nor grow."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary.padded_size,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=16384,
        initializer_range=hidden**-0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def timed(action):
    """What an action returns, its seconds, and those in which the processor worked for it."""
    start, start_work = time.perf_counter(), time.process_time()
    result = action()
    return result, time.perf_counter() - start, time.process_time() - start_work


def race(name: str, ours, peer, tokens: int):
    """Results of both and the ratio of their processor seconds, which other programs on the machine change least.

    Ours runs before and after the peer, and its mean counts.
    """
    found, before, before_work = timed(ours)
    expected, peer_s, peer_work = timed(peer)
    _, after, after_work = timed(ours)
    ours_s, ours_work = (before + after) / 2, (before_work + after_work) / 2
    print(f"{name}: {tokens} tokens in {ours_s:.1f} s ({before:.1f}, {after:.1f}), ", end="")
    print(f"{ours_work:.1f} s of processor ({before_work:.1f}, {after_work:.1f})")
    print(f"{name}: generate() {peer_s:.1f} s, {peer_work:.1f} s of processor; ", end="")
    print(f"by the clock {peer_s / ours_s:.2f}", flush=True)
    return found, expected, peer_work / ours_work


def race_stage1(network: LlamaForCausalLM, vocabulary: Vocabulary, options: argparse.Namespace) -> float:
    """The ratio of stage 1; ends the program where a token differs."""
    grammar = AudioGrammar(vocabulary)
    rng = np.random.default_rng(0)

    def text(length: int) -> list[int]:
        return rng.integers(0, vocabulary.text_size, length).tolist()

    header, closing = text(HEADER_TOKENS), [grammar.end, *text(7)]
    openings = [text(TEXT_TOKENS) + grammar.opening for _ in range(options.segments)]
    plan = Plan(header, openings, [], range(options.segments), closing, grammar, seed=0)
    settings = SamplingSettings(temperature=0, min_new_tokens=options.tokens, max_new_tokens=options.tokens)
    masks = [torch.from_numpy(grammar.mask(position).copy()) for position in range(2 * grammar.period)]

    def ours() -> list[list[int]]:
        (song,) = sing(network, 16384, [plan], settings)
        return [segment.audio for segment in song.segments]

    @torch.inference_mode()
    def peer() -> list[list[int]]:
        ids, audio = list(header), []
        for index, opening in enumerate(openings):
            ids += opening
            allowed = Allowed(lambda new: masks[new if new < 2 else 2 + new % 2], len(ids))
            output = network.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                min_new_tokens=options.tokens,
                max_new_tokens=options.tokens,
                repetition_penalty=settings.repetition_penalty,
                guidance_scale=settings.guidance_first if index == 0 else settings.guidance_rest,
                eos_token_id=grammar.end,
                pad_token_id=grammar.end,
                logits_processor=LogitsProcessorList([Blocked(0, vocabulary.text_size + 2), allowed]),
            )[0].tolist()
            audio.append(output[len(ids) :])
            ids = [*output, *closing]
        return audio

    found, expected, ratio = race("stage 1", ours, peer, options.segments * options.tokens)
    if found != expected:
        raise SystemExit("stage 1: the tokens differ")
    print("stage 1: all tokens equal")
    return ratio


def race_stage2(network: LlamaForCausalLM, vocabulary: Vocabulary, options: argparse.Namespace) -> float:
    """The ratio of stage 2; ends the program where a token of the right codebook differs."""
    codec = vocabulary.codec()
    form = WindowForm(codec, CODEBOOKS, True, options.frames)
    folder = ModelFolder(Path(), vocabulary, 16384, {}, Path())
    rng = np.random.default_rng(0)
    codes_T = rng.integers(0, codec.codebook_size, options.windows * options.frames).astype(np.int16)
    coarse_RT = codec.ids(codes_T[None]).reshape(options.windows, options.frames)
    opening = np.tile([vocabulary.special("<SOA>"), vocabulary.special("<stage_1>")], (options.windows, 1))
    middle = np.full((options.windows, 1), vocabulary.special("<stage_2>"))
    prompt_RT = torch.from_numpy(np.concatenate([opening, coarse_RT, middle], axis=1).astype(np.int64))
    first, end = codec.codebook_ids(1).start, codec.codebook_ids(CODEBOOKS - 1).stop
    blocked = LogitsProcessorList([Blocked(0, first), Blocked(end, vocabulary.padded_size)])

    def ours() -> np.ndarray:
        return refine(folder, network, [codes_T], form)[0]

    @torch.inference_mode()
    def peer() -> torch.Tensor:
        ids_RT = prompt_RT
        for frame in range(options.frames):
            ids_RT = torch.cat([ids_RT, torch.from_numpy(coarse_RT[:, frame : frame + 1].astype(np.int64))], dim=1)
            ids_RT = network.generate(
                ids_RT,
                attention_mask=torch.ones_like(ids_RT),
                do_sample=False,
                min_new_tokens=CODEBOOKS - 1,
                max_new_tokens=CODEBOOKS - 1,
                eos_token_id=vocabulary.special("<EOA>"),
                pad_token_id=vocabulary.special("<EOA>"),
                logits_processor=blocked,
            )
        return ids_RT[:, prompt_RT.shape[1] :]

    tokens = options.windows * options.frames * (CODEBOOKS - 1)
    _, expected, ratio = race("stage 2", ours, peer, tokens)
    right, equal = compared(network, codec, prompt_RT, expected)
    print(f"stage 2: {right} of {tokens} tokens of generate() are of the right codebook; {equal} of them are equal")
    if right != equal:
        raise SystemExit("stage 2: tokens of the right codebook differ")
    return ratio


def compared(network: LlamaForCausalLM, codec, prompt_RT: torch.Tensor, ids_RT: torch.Tensor) -> tuple[int, int]:
    """How many ids are of the codebook that is due, and how many of these are chosen here behind the same ids."""
    rows, length = ids_RT.shape
    decoder = LlamaDecoder(network, rows, prompt_RT.shape[1] + length)
    decoder.read(prompt_RT)
    right = equal = 0
    for place in range(length - 1):
        output = decoder.read(ids_RT[:, place : place + 1])
        codebook = (place + 1) % CODEBOOKS
        if codebook:
            valid = codec.codebook_ids(codebook)
            due = ids_RT[:, place + 1]
            within = (due >= valid.start) & (due < valid.stop)
            chosen = valid.start + decoder.score(output, valid).argmax(-1)
            right += int(within.sum())
            equal += int((within & (chosen == due)).sum())
    return right, equal


if __name__ == "__main__":
    main()
