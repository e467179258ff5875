"""A Whisper of random weights, converted by CTranslate2."""

from pathlib import Path

import ctranslate2
import torch
from faster_whisper.tokenizer import _LANGUAGE_CODES
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEXT_TOKENS, LANGUAGES = 50257, 99  # CTranslate2 tells a multilingual Whisper by the size of its vocabulary


def write_whisper(folder: Path) -> str:
    """A CTranslate2 folder of a Whisper with two layers of 16 dimensions; its tokenizer knows bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [f"filler{number}" for number in range(TEXT_TOKENS - len(letters))]
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", *list(_LANGUAGE_CODES)[:LANGUAGES]]
    names += ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens([f"<|{name}|>" for name in names])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder / "transformers")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "transformers")
    config = WhisperConfig(
        vocab_size=len(fast) + 1501, num_mel_bins=80, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        decoder_start_token_id=TEXT_TOKENS + 1, eos_token_id=TEXT_TOKENS, pad_token_id=TEXT_TOKENS,
        bos_token_id=TEXT_TOKENS, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder / "transformers")
    converter = ctranslate2.converters.TransformersConverter(
        str(folder / "transformers"), copy_files=["tokenizer.json", "preprocessor_config.json"]
    )
    return converter.convert(str(folder / "ct2"))
