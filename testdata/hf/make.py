"""Makes the folders of this directory: tiny models of each family with random weights as transformers saves them, and its logits.

    pip install torch transformers safetensors numpy; python testdata/hf/make.py

expected.safetensors holds input_ids [2, 24] and transformers' float32 logits [2, 24, vocab].
"""
import pathlib
import numpy
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoConfig

HERE = pathlib.Path(__file__).parent
SIZES = dict(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32)
GROUPED = dict(SIZES, num_key_value_heads=2)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, rope_theta=1e4)
FOLDERS = {
    "llama": dict(model_type="llama", **GROUPED),
    # Biases, tied, wide heads, stretched wavelengths, in shards.
    "llama3": dict(model_type="llama", **GROUPED, head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "qwen2": dict(model_type="qwen2", **GROUPED),
    "qwen3": dict(model_type="qwen3", **GROUPED, head_dim=8),
    "mistral": dict(model_type="mistral", **GROUPED, sliding_window=8),
    "gemma2": dict(model_type="gemma2", **GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=6),
    "gemma3": dict(model_type="gemma3_text", **GROUPED, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "phi3": dict(model_type="phi3", **GROUPED, pad_token_id=0, bos_token_id=1, eos_token_id=2, original_max_position_embeddings=32),
    "gpt2": dict(model_type="gpt2", vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=4),
    "gpt_neox": dict(model_type="gpt_neox", **SIZES, rotary_pct=0.5),
    "opt": dict(model_type="opt", vocab_size=48, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=32, word_embed_proj_dim=16),
}

for number, (name, about) in enumerate(FOLDERS.items()):
    torch.manual_seed(number)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**about))
    with torch.no_grad():
        # Away from ones and zeros, so that each weight matters.
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    half = {"qwen3": torch.float16}.get(name, torch.bfloat16)
    model = model.to(half).eval()
    model.save_pretrained(HERE / name, max_shard_size="8KB" if name == "llama3" else "1GB")
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    # Eager attention: with windows, what a kernel makes of a mask is its own affair.
    model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(0, 48, (2, 24), generator=torch.Generator().manual_seed(number))
    with torch.no_grad():
        logits = model(ids).logits.contiguous()
    save_file({"input_ids": ids, "logits": logits}, HERE / name / "expected.safetensors")
