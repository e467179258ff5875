"""Codecs of the published structures with random weights, small enough for tests of several rooms."""

import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, HubertConfig, XcodecConfig, XcodecModel


def tiny_xcodec() -> XcodecModel:
    """A tiny X-Codec of YuE's structure with random weights and random codebooks."""
    ratios = [8, 5, 4, 2]
    config = XcodecConfig(
        target_bandwidths=(0.5, 1, 1.5, 2, 4, 6),
        acoustic_model_config=DacConfig(
            encoder_hidden_size=4,
            downsampling_ratios=ratios,
            decoder_hidden_size=32,
            upsampling_ratios=ratios,
            hidden_size=16,
        ),
        semantic_model_config=HubertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
    )
    torch.manual_seed(0)
    model = XcodecModel(config).eval()
    # transformers initialises codebooks to zeros, with which every code is 0.
    for quantizer in model.quantizer.quantizers:
        quantizer.codebook.embed.normal_(std=0.02)
    return model


def tiny_encodec(sample_rate: int = 24_000) -> EncodecModel:
    """A tiny EnCodec with random weights and codebooks that tell its frames apart."""
    config = EncodecConfig(
        sampling_rate=sample_rate,
        target_bandwidths=[1.5 * sample_rate / 24_000, 3.0 * sample_rate / 24_000],
        num_filters=4,
        hidden_size=16,
        codebook_size=64,
        num_lstm_layers=1,
    )
    torch.manual_seed(0)
    model = EncodecModel(config).eval()
    # An untrained encoder's frames differ little: only codes that are such frames tell them apart.
    with torch.no_grad():
        frames_TD = model.encoder(torch.randn(1, 1, 64 * config.hop_length))[0].T
    for index, layer in enumerate(model.quantizer.layers):
        layer.codebook.embed.copy_(frames_TD if index == 0 else (frames_TD - frames_TD.mean(0)) / 2**index)
    return model


def tiny_dac() -> DacModel:
    """A tiny DAC with random weights."""
    config = DacConfig(
        sampling_rate=16_000,
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 5, 8],
        decoder_hidden_size=32,
        upsampling_ratios=[8, 5, 4, 2],
        hidden_size=16,
        n_codebooks=4,
        codebook_size=64,
        codebook_dim=4,
    )
    torch.manual_seed(0)
    return DacModel(config)
