"""A CLAP and an audio classifier of random weights, saved as real ones are."""

from pathlib import Path

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedTokenizerFast,
)

from tokenizers import Tokenizer, models, pre_tokenizers


def write_clap(folder: Path) -> str:
    """A ClapModel with its extractor and a tokenizer of a few words."""
    torch.manual_seed(0)
    text = dict(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text |= dict(max_position_embeddings=40, projection_dim=12, pad_token_id=1)
    audio = dict(patch_embeds_hidden_size=8, hidden_size=64, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2])
    audio |= dict(spec_size=256, num_mel_bins=64, projection_dim=12, window_size=8)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12)).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    words = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "folk", "rock", "piano"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=30
    )
    fast.save_pretrained(folder)
    return str(folder)


def write_classifier(folder: Path) -> str:
    """An audio spectrogram transformer with five classes."""
    torch.manual_seed(1)
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=5)
    ASTForAudioClassification(ASTConfig(**shape, initializer_range=0.5)).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return str(folder)
