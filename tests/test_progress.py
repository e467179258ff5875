"""What is said on standard error stands there as it was said."""

from megatron_music.progress import console, quiet_transformers


def test_names_of_files_are_no_markup(capsys, monkeypatch):
    lines = "songs/[live] :fire: album/[/b].wav is damaged, " + "x" * 300
    console.print(lines)
    assert capsys.readouterr().err == lines + "\n"


def test_transformers_says_nothing_while_a_model_is_loaded(tmp_path, capfd):
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **size)).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        loaded = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert len(loaded["missing_keys"]) > 8 and capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
