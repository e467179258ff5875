"""The Llama network, assembled from megatron-core's parts for this process' place in the layout."""

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_music.engine.hardware import transformer_engine_present
from megatron_music.engine.kernels import VocabularyCrossEntropy
from megatron_music.engine.layers import local_block_spec
from megatron_music.engine.linear import ColumnLinear
from megatron_music.engine.lora import add_adapters
from megatron_music.recipe.layout import Layout
from megatron_music.recipe.recipe import Recipe


def transformer_config(recipe: Recipe) -> TransformerConfig:
    """Megatron-core's configuration of the recipe's network, layout, precision and recomputation."""
    network, layout = recipe.network, recipe.layout
    dtype = torch.bfloat16 if recipe.is_bf16 else torch.float32
    on_gpu, fused = torch.cuda.is_available(), uses_transformer_engine(recipe)
    return TransformerConfig(
        num_layers=network.layers,
        hidden_size=network.hidden_size,
        num_attention_heads=network.attention_heads,
        num_query_groups=network.key_value_heads,
        ffn_hidden_size=network.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=network.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method_std=network.init_std,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.interleave if layout.interleave > 1 else None,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence,
        tp_comm_overlap=layout.tensor_overlap and fused,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=recipe.is_bf16,
        use_cpu_initialization=not on_gpu,
        # Gloo mixes up batched sends and receives: stages then train on each other's tensors without an error.
        batch_p2p_comm=on_gpu,
        apply_rope_fusion=fused,
        bias_activation_fusion=fused,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        deallocate_pipeline_outputs=True,
        cuda_graph_impl="local" if layout.cuda_graphs and on_gpu else "none",
        **_recomputation(layout, network.layers // (layout.pipeline * layout.interleave)),
        **(_fp8(recipe.fp8_scaling) if fused and recipe.fp8_scaling else {}),
    )


def uses_transformer_engine(recipe: Recipe) -> bool:
    """Whether the layers are Transformer Engine's: they fuse the norm with the matrix behind it, and hide what an
    adapter reads."""
    return transformer_engine_present() and recipe.needs_own_layers is None


def _recomputation(layout: Layout, layers: int) -> dict[str, object]:
    """What the backward pass computes again, of a run of ``layers`` layers.

    Flash attention keeps no score matrix, so that megatron-core's own choice for "selective", the attention, would free
    next to nothing; the feed-forward layers hold most of what a layer keeps.
    """
    if layout.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    if layout.recompute == "full":
        count = layout.recompute_layers or layers
        return {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": count}
    return {}


def _fp8(scaling: str) -> dict[str, object]:
    """Transformer Engine's FP8: matrix products of the layers, forward and backward, on weights that stay in BF16.

    By tensor, gradients take the format with the wider range (E5M2); blocks have scales enough for E4M3 throughout.
    """
    formats = {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3"}
    # The largest of the last 1,024 values is what Transformer Engine proposes for delayed scaling.
    return {
        "fp8": formats[scaling],
        "fp8_recipe": scaling,
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
    }


class Llama(GPTModel):
    """Megatron-core's GPT with a cross entropy that needs no second copy of the logits."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if self.post_process:
            # Megatron-core names the class of its output layer itself.
            self.output_layer.__class__ = ColumnLinear

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross entropy of every position, FP32.

        Args:
            labels: (batch, sequence) ids.
            logits: (sequence, batch, this process' share of the vocabulary); the backward pass overwrites them.

        Returns:
            (batch, sequence) nats.
        """
        labels_sb = labels.transpose(0, 1)
        losses = VocabularyCrossEntropy.apply(logits.flatten(0, 1), labels_sb.reshape(-1), self.pg_collection.tp)
        return losses.view_as(labels_sb).transpose(0, 1)


def build_chunks(recipe: Recipe, config: TransformerConfig, vocabulary_size: int) -> list[torch.nn.Module]:
    """This process' runs of layers (one, unless the pipeline is interleaved), drawn from the recipe's seed.

    The last run's ``forward(ids, positions, None, labels=labels)`` gives losses, or logits without labels.
    """
    interleave = config.virtual_pipeline_model_parallel_size
    tensor_parallel.model_parallel_cuda_manual_seed(recipe.seed, use_cudagraphable_rng=config.cuda_graph_impl != "none")
    torch.manual_seed(recipe.seed + 100 * parallel_state.get_pipeline_model_parallel_rank())
    chunks = []
    for stage in range(interleave or 1):
        stage_index = stage if interleave else None
        chunk = Llama(
            config=config,
            transformer_layer_spec=_block_spec(config, stage_index, uses_transformer_engine(recipe)),
            vocab_size=vocabulary_size,
            max_sequence_length=recipe.network.position_limit,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage_index),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage_index),
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_base=recipe.network.rope_base,
            vp_stage=stage_index,
        )
        if recipe.lora is not None:
            add_adapters(chunk, recipe)
        if torch.cuda.is_available():
            chunk.cuda(torch.cuda.current_device())
        _add_gradients_in_place(chunk)
        chunks.append(Float16Module(config, chunk) if config.bf16 else chunk)
    if config.cuda_graph_impl != "none":
        # What replays the layers has to know. Told only now: megatron-core's output layer, which ours replaces, would
        # ask for Apex.
        config.gradient_accumulation_fusion = True
    return chunks


def _add_gradients_in_place(chunk: torch.nn.Module) -> None:
    """Lets Transformer Engine's products add the weights' gradients to the buffer, as ours do."""
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def _block_spec(config: TransformerConfig, stage: int | None, fused: bool) -> TransformerBlockSubmodules:
    if fused:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

        return get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=stage)
    return local_block_spec(config.num_layers // (config.pipeline_model_parallel_size * (
        config.virtual_pipeline_model_parallel_size or 1)))  # fmt: skip


def distribute(recipe: Recipe, config: TransformerConfig, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Wraps the chunks for data parallelism and tells the schedule how gradients are reduced."""
    overlap = recipe.layout.overlap and parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1
    data_parallel = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
        use_distributed_optimizer=True,
    )
    wrapped = [
        # Later chunks finish their backward first; a bucket of their own would only delay the last reduction.
        DistributedDataParallel(config, data_parallel, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(wrapped) > 1 else no_sync[0]
        if len(wrapped) > 1:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    return wrapped
