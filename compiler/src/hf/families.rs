//! The families of causal language models, each as a [`Decoder`].

use super::config::Config;
use super::decoder::{Activation, Attention, Decoder, Layer, Mlp, MlpKind, Norm, Norms, Positions, Qkv};
use super::rotary::Rotary;

type Family = fn(&Config) -> Result<Decoder, String>;

/// By `model_type`.
const FAMILIES: [(&str, Family); 10] = [
    ("llama", llama),
    ("mistral", llama),
    ("qwen2", qwen2),
    ("qwen3", qwen3),
    ("gemma2", gemma2),
    ("gemma3_text", gemma3),
    ("phi3", phi3),
    ("gpt2", gpt2),
    ("gpt_neox", gpt_neox),
    ("opt", opt),
];

/// The model that a configuration describes.
///
/// # Errors
/// A sentence without a subject: a family that is not known, or a variant of one that is not.
pub fn decoder(config: &Config) -> Result<Decoder, String> {
    let name = config.text("model_type").ok_or("has no model_type in its config.json")?;
    let family = FAMILIES.iter().find(|(known, _)| *known == name);
    let (_, family) = family.ok_or_else(|| {
        let known = FAMILIES.map(|(name, _)| name).join(", ");
        format!("is of the family {name:?}; these are read: {known}; export others to ONNX")
    })?;
    if let Some(odd) = config.architecture().filter(|a| !a.ends_with("ForCausalLM") && !a.ends_with("LMHeadModel") && !a.ends_with("Model"))
    {
        return Err(format!("was saved from {odd}, which is no causal language model; export it to ONNX"));
    }
    let decoder = family(config)?;
    if decoder.heads % decoder.kv_heads != 0 || decoder.head == 0 || decoder.layers.is_empty() {
        return Err(format!("has {} heads and {} key-value heads, which do not fit", decoder.heads, decoder.kv_heads));
    }
    Ok(decoder)
}

fn activation(config: &Config, field: &str) -> Result<Activation, String> {
    match config.text(field).unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => Err(format!("has the activation {other:?}, which is not known")),
    }
}

fn eps(config: &Config, field: &str, usual: f64) -> Result<f32, String> {
    Ok(config.number_or(field, usual)? as f32)
}

/// What Llama and its like have in common.
fn llama(config: &Config) -> Result<Decoder, String> {
    let (dim, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let head = config.size_or("head_dim", dim / heads)?;
    let layers = config.size("num_hidden_layers")?;
    let bias = config.flag_or("attention_bias", false);
    // Mistral's window is of all layers; Qwen's of those that `layer_types` says, and only where it is used.
    let window = if config.flag_or("use_sliding_window", true) { config.get("sliding_window").and_then(|w| w.as_u64()) } else { None };
    Ok(Decoder {
        family: "llama",
        dim,
        vocab: config.size("vocab_size")?,
        heads,
        kv_heads: config.size_or("num_key_value_heads", heads)?,
        head,
        ffn: config.size("intermediate_size")?,
        longest: config.size_or("max_position_embeddings", 2048)?,
        embedding: "model.embed_tokens.weight",
        embedding_scale: None,
        positions: None,
        norm: Norm::Rms { eps: eps(config, "rms_norm_eps", 1e-6)? },
        in_out: false,
        stack: "model.layers",
        layers: (0..layers as usize).map(|n| Layer { rotary: Some(0), window: window.filter(|_| slides(config, n)) }).collect(),
        attention: Attention {
            qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            qkv_bias: bias,
            out: "self_attn.o_proj",
            out_bias: bias,
            head_norms: None,
            scale: None,
            cap: None,
        },
        mlp: Mlp {
            kind: MlpKind::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
            activation: activation(config, "hidden_act")?,
            bias: config.flag_or("mlp_bias", false),
        },
        parallel: false,
        norms: Norms {
            before_attention: "input_layernorm",
            after_attention: None,
            before_mlp: "post_attention_layernorm",
            after_mlp: None,
        },
        last_norm: "model.norm",
        lm_head: (!config.flag_or("tie_word_embeddings", false)).then_some("lm_head.weight"),
        cap: None,
        rotary: vec![Rotary::of(config, "rope_parameters", head)?],
    })
}

/// Whether a layer looks back no further than its window.
fn slides(config: &Config, layer: usize) -> bool {
    let kind = config.get("layer_types").and_then(|types| types.get(layer)).and_then(|t| t.as_str());
    kind.is_none_or(|kind| kind == "sliding_attention")
}

fn qwen2(config: &Config) -> Result<Decoder, String> {
    let mut d = without_window_unless_typed(config, llama(config)?);
    d.family = "qwen2";
    (d.attention.qkv_bias, d.attention.out_bias) = (true, false);
    Ok(d)
}

fn qwen3(config: &Config) -> Result<Decoder, String> {
    let mut d = without_window_unless_typed(config, llama(config)?);
    d.family = "qwen3";
    d.attention.head_norms = Some(["self_attn.q_norm", "self_attn.k_norm"]);
    Ok(d)
}

/// Qwen's windows are of the layers from `max_window_layers` on where no types are written down.
fn without_window_unless_typed(config: &Config, mut d: Decoder) -> Decoder {
    let first = config.get("max_window_layers").and_then(|n| n.as_u64()).unwrap_or(0) as usize;
    if !config.flag_or("use_sliding_window", false) {
        d.layers.iter_mut().for_each(|l| l.window = None);
    } else if config.get("layer_types").is_none() {
        d.layers.iter_mut().take(first).for_each(|l| l.window = None);
    }
    d
}

/// What Gemma 2 and 3 have in common.
fn gemma(config: &Config) -> Result<Decoder, String> {
    let mut d = llama(config)?;
    d.norm = Norm::RmsPlusOne { eps: eps(config, "rms_norm_eps", 1e-6)? };
    d.embedding_scale = Some((d.dim as f64).sqrt() as f32);
    d.attention.scale = Some(config.number_or("query_pre_attn_scalar", d.head as f64)?.powf(-0.5) as f32);
    let cap = |name: &str| config.number_or(name, 0.0).map(|x| Some(x as f32).filter(|&x| x > 0.0));
    (d.attention.cap, d.cap) = (cap("attn_logit_softcapping")?, cap("final_logit_softcapping")?);
    let field = if config.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    d.mlp.activation = activation(config, field)?;
    d.norms = Norms {
        before_attention: "input_layernorm",
        after_attention: Some("post_attention_layernorm"),
        before_mlp: "pre_feedforward_layernorm",
        after_mlp: Some("post_feedforward_layernorm"),
    };
    d.lm_head = (!config.flag_or("tie_word_embeddings", true)).then_some("lm_head.weight");
    Ok(d)
}

fn gemma2(config: &Config) -> Result<Decoder, String> {
    let mut d = gemma(config)?;
    d.family = "gemma2";
    if config.get("layer_types").is_none() {
        d.layers.iter_mut().skip(1).step_by(2).for_each(|l| l.window = None);
    }
    Ok(d)
}

fn gemma3(config: &Config) -> Result<Decoder, String> {
    let mut d = gemma(config)?;
    d.family = "gemma3";
    d.attention.head_norms = Some(["self_attn.q_norm", "self_attn.k_norm"]);
    if config.get("layer_types").is_none() {
        let every = config.size_or("sliding_window_pattern", 6)? as usize;
        d.layers.iter_mut().skip(every - 1).step_by(every).for_each(|l| l.window = None);
    }
    let local = match config.get("rope_parameters.full_attention").is_some() {
        true => {
            d.rotary = vec![Rotary::of(config, "rope_parameters.full_attention", d.head)?];
            Rotary::of(config, "rope_parameters.sliding_attention", d.head)?
        }
        // Before version 5 of transformers.
        false => Rotary::plain(config.number_or("rope_local_base_freq", 10_000.0)?, d.head),
    };
    d.rotary.push(local);
    d.layers.iter_mut().filter(|l| l.window.is_some()).for_each(|l| l.rotary = Some(1));
    Ok(d)
}

fn phi3(config: &Config) -> Result<Decoder, String> {
    let mut d = llama(config)?;
    d.family = "phi3";
    d.attention.qkv = Qkv::Joined("self_attn.qkv_proj");
    d.mlp.kind = MlpKind::Joined { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" };
    Ok(d)
}

fn gpt2(config: &Config) -> Result<Decoder, String> {
    let (dim, heads) = (config.size("n_embd")?, config.size("n_head")?);
    if config.flag_or("scale_attn_by_inverse_layer_idx", false) || !config.flag_or("scale_attn_weights", true) {
        return Err("scales its attention in an unusual way, which is not read".into());
    }
    let longest = config.size("n_positions")?;
    Ok(Decoder {
        family: "gpt2",
        dim,
        vocab: config.size("vocab_size")?,
        heads,
        kv_heads: heads,
        head: dim / heads,
        ffn: config.size_or("n_inner", 4 * dim)?,
        longest,
        embedding: "transformer.wte.weight",
        embedding_scale: None,
        positions: Some(Positions { weight: "transformer.wpe.weight", rows: longest, first: 0 }),
        norm: Norm::Layer { eps: eps(config, "layer_norm_epsilon", 1e-5)? },
        in_out: true,
        stack: "transformer.h",
        layers: vec![Layer::default(); config.size("n_layer")? as usize],
        attention: Attention {
            qkv: Qkv::Joined("attn.c_attn"),
            qkv_bias: true,
            out: "attn.c_proj",
            out_bias: true,
            head_norms: None,
            scale: None,
            cap: None,
        },
        mlp: Mlp {
            kind: MlpKind::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
            activation: activation(config, "activation_function")?,
            bias: true,
        },
        parallel: false,
        norms: Norms { before_attention: "ln_1", after_attention: None, before_mlp: "ln_2", after_mlp: None },
        last_norm: "transformer.ln_f",
        lm_head: (!config.flag_or("tie_word_embeddings", true)).then_some("lm_head.weight"),
        cap: None,
        rotary: vec![],
    })
}

fn gpt_neox(config: &Config) -> Result<Decoder, String> {
    let mut d = llama(config)?;
    let bias = config.flag_or("attention_bias", true);
    d.family = "gpt_neox";
    d.kv_heads = d.heads;
    d.embedding = "gpt_neox.embed_in.weight";
    d.norm = Norm::Layer { eps: eps(config, "layer_norm_eps", 1e-5)? };
    d.stack = "gpt_neox.layers";
    (d.attention.qkv, d.attention.qkv_bias) = (Qkv::ByHead("attention.query_key_value"), bias);
    (d.attention.out, d.attention.out_bias) = ("attention.dense", bias);
    d.mlp.kind = MlpKind::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" };
    d.mlp.bias = true;
    d.parallel = config.flag_or("use_parallel_residual", true);
    d.last_norm = "gpt_neox.final_layer_norm";
    d.lm_head = (!config.flag_or("tie_word_embeddings", false)).then_some("embed_out.weight");
    // A quarter of each head is turned unless the configuration says otherwise.
    if config.get("rope_parameters.partial_rotary_factor").or(config.get("rotary_pct")).is_none() {
        d.rotary = vec![Rotary::plain(config.number_or("rotary_emb_base", 10_000.0)?, d.head / 4)];
    }
    Ok(d)
}

fn opt(config: &Config) -> Result<Decoder, String> {
    let dim = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    if !config.flag_or("do_layer_norm_before", true) || config.size_or("word_embed_proj_dim", dim)? != dim {
        return Err("normalises after its layers, or projects its embedding, which is not read".into());
    }
    let bias = config.flag_or("enable_bias", true);
    let longest = config.size_or("max_position_embeddings", 2048)?;
    Ok(Decoder {
        family: "opt",
        dim,
        vocab: config.size("vocab_size")?,
        heads,
        kv_heads: heads,
        head: dim / heads,
        ffn: config.size("ffn_dim")?,
        longest,
        embedding: "model.decoder.embed_tokens.weight",
        embedding_scale: None,
        // The first two rows were for padding.
        positions: Some(Positions { weight: "model.decoder.embed_positions.weight", rows: longest + 2, first: 2 }),
        norm: Norm::Layer { eps: 1e-5 },
        in_out: false,
        stack: "model.decoder.layers",
        layers: vec![Layer::default(); config.size("num_hidden_layers")? as usize],
        attention: Attention {
            qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            qkv_bias: bias,
            out: "self_attn.out_proj",
            out_bias: bias,
            head_norms: None,
            scale: None,
            cap: None,
        },
        mlp: Mlp { kind: MlpKind::Plain { up: "fc1", down: "fc2" }, activation: activation(config, "activation_function")?, bias },
        parallel: false,
        norms: Norms { before_attention: "self_attn_layer_norm", after_attention: None, before_mlp: "final_layer_norm", after_mlp: None },
        last_norm: "model.decoder.final_layer_norm",
        lm_head: (!config.flag_or("tie_word_embeddings", true)).then_some("lm_head.weight"),
        cap: None,
        rotary: vec![],
    })
}
