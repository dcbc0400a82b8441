//! Language models made to measure, as JSON models: GPT-2 and Llama.

use super::build::{Attributes, ModelBuilder};
use super::model::{Attribute, Dim, Elem, Model, ModelInput, ModelOutput};
use crate::graph::Init;
use std::str::FromStr;

/// Standard deviation of weights at the start; that of projections into the residual stream is divided by sqrt(2 layers).
const STD: f32 = 0.02;
/// Base of the rotary embedding's wavelengths.
const ROTARY_BASE: f64 = 10_000.0;

/// Largest size, and number of layers.
pub const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: u64 = 4096;

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LayerNorm, learned positions, GELU, biases; embedding and LM head tied.
    Gpt2,
    /// RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.
    Llama,
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gpt2" => Ok(Family::Gpt2),
            "llama" => Ok(Family::Llama),
            _ => Err(format!("{text:?} is no model family; there are gpt2 and llama")),
        }
    }
}

/// What the command line asks for; what it leaves out comes from the preset, or follows from the rest.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `125m`, `7b` or `42b`; 125m if left out.
    pub preset: Option<String>,
    pub layers: Option<u64>,
    pub dim: Option<u64>,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub ffn: Option<u64>,
    pub vocab: Option<u64>,
    pub seq: Option<u64>,
    pub batch: Option<u64>,
    /// Whether the LM head is the embedding; GPT-2's is, Llama's is not.
    pub tied: Option<bool>,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub layers: u64,
    pub dim: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub ffn: u64,
    pub vocab: u64,
    pub seq: u64,
    pub batch: u64,
    pub tied: bool,
}

impl Sizes {
    /// Completes a request.
    ///
    /// # Errors
    /// A sentence: an unknown preset, or sizes that do not fit one another.
    pub fn of(family: Family, request: &Request) -> Result<Self, String> {
        let preset = request.preset.as_deref().unwrap_or("125m");
        // layers, dim, heads, kv heads, ffn, vocabulary, sequence
        let [layers, dim, heads, kv_heads, ffn, vocab, seq] = match (family, preset) {
            (Family::Gpt2, "125m") => [12, 768, 12, 12, 3072, 50_257, 1024],
            (Family::Gpt2, "7b") => [32, 4096, 32, 32, 16_384, 50_257, 2048],
            (Family::Gpt2, "42b") => [52, 8192, 64, 64, 32_768, 50_257, 2048],
            (Family::Llama, "125m") => [12, 768, 12, 12, 2048, 32_000, 1024],
            (Family::Llama, "7b") => [32, 4096, 32, 32, 11_008, 32_000, 4096],
            (Family::Llama, "42b") => [48, 8192, 64, 8, 28_672, 32_000, 4096],
            _ => return Err(format!("{preset:?} is no preset; there are 125m, 7b and 42b")),
        };
        let resized = request.dim.is_some_and(|d| d != dim);
        let dim = request.dim.unwrap_or(dim);
        let heads = request.heads.unwrap_or(if resized { (dim / 64).max(1) } else { heads });
        // A preset's sharing of keys and values holds only for its own number of heads.
        let kv_heads = request.kv_heads.unwrap_or(if resized || request.heads.is_some() { heads } else { kv_heads });
        let ffn = request.ffn.unwrap_or(match family {
            _ if !resized => ffn,
            Family::Gpt2 => dim.saturating_mul(4),
            Family::Llama => (dim.saturating_mul(8) / 3).next_multiple_of(64),
        });
        let layers = request.layers.unwrap_or(layers);
        let (vocab, seq) = (request.vocab.unwrap_or(vocab), request.seq.unwrap_or(seq));
        let tied = request.tied.unwrap_or(family == Family::Gpt2);
        let sizes = Sizes { layers, dim, heads, kv_heads, ffn, vocab, seq, batch: request.batch.unwrap_or(1), tied };
        sizes.check(family).map(|()| sizes)
    }

    fn check(&self, family: Family) -> Result<(), String> {
        let Sizes { layers, dim, heads, kv_heads, ffn, vocab, seq, batch, .. } = *self;
        let all = [layers, dim, heads, kv_heads, ffn, vocab, seq, batch];
        if all.iter().any(|&n| n == 0 || n > MAX_SIZE) || layers > MAX_LAYERS {
            return Err(format!("every size of a model must be from 1 to {MAX_SIZE}, and layers from 1 to {MAX_LAYERS}"));
        }
        if dim % heads != 0 || heads % kv_heads != 0 {
            return Err(format!("{dim} dimensions, {heads} heads and {kv_heads} key-value heads do not divide one another"));
        }
        if family == Family::Llama && (dim / heads) % 2 != 0 {
            return Err(format!("a head of {} dimensions cannot be rotated in pairs", dim / heads));
        }
        if family == Family::Gpt2 && kv_heads != heads {
            return Err("gpt2 has as many key-value heads as heads".into());
        }
        Ok(())
    }
}

/// Makes a model whose one output is the token cross-entropy of `input_ids` against `labels`, both `[batch, seq]`.
pub fn new(family: Family, sizes: &Sizes) -> Model {
    let mut b = Builder::new(family, *sizes);
    let x = match family {
        Family::Gpt2 => b.gpt2(),
        Family::Llama => b.llama(),
    };
    b.loss(&x);
    b.parts.model
}

struct Builder {
    parts: ModelBuilder,
    sizes: Sizes,
    residual_std: f32,
    head: &'static str,
}

impl Builder {
    fn new(family: Family, sizes: Sizes) -> Self {
        let residual_std = STD / ((2 * sizes.layers) as f32).sqrt();
        let name = if family == Family::Gpt2 { "gpt2" } else { "llama" };
        let model = Model { name: name.into(), opset: 23, ..Model::default() };
        let mut b = Builder { parts: ModelBuilder { model }, sizes, residual_std, head: "lm_head.weight" };
        for name in ["input_ids", "labels"] {
            let shape = vec![Dim::Known(sizes.batch), Dim::Known(sizes.seq)];
            b.parts.model.inputs.push(ModelInput { name: name.into(), elem: Elem::I64, shape });
        }
        b.ints("rows", &[-1, sizes.dim as i64]);
        b.ints("flat", &[-1]);
        b
    }

    fn parameter(&mut self, name: &str, shape: &[u64], init: Init) -> String {
        self.parts.parameter(name, shape, init)
    }

    fn weight(&mut self, name: &str, shape: &[u64]) -> String {
        self.parameter(name, shape, Init::Normal { std: STD })
    }

    fn ints(&mut self, name: &str, data: &[i64]) -> String {
        self.parts.ints(name, data)
    }

    fn node(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Attributes) -> String {
        self.parts.node(op, inputs, outputs, attributes)
    }

    fn layer_norm(&mut self, x: &str, module: &str) -> String {
        let dim = [self.sizes.dim];
        let scale = self.parameter(&format!("{module}.weight"), &dim, Init::Ones);
        let bias = self.parameter(&format!("{module}.bias"), &dim, Init::Zeros);
        self.node("LayerNormalization", &[x, &scale, &bias], &[module], &[("epsilon", Attribute::Float(1e-5))])
    }

    fn rms_norm(&mut self, x: &str, module: &str) -> String {
        let scale = self.parameter(&format!("{module}.weight"), &[self.sizes.dim], Init::Ones);
        self.node("RMSNormalization", &[x, &scale], &[module], &[("epsilon", Attribute::Float(1e-5))])
    }

    /// GPT-2's `Conv1D`: weight `[in, out]` and bias.
    fn conv1d(&mut self, x: &str, module: &str, [from, to]: [u64; 2], std: f32) -> String {
        let weight = self.parameter(&format!("{module}.weight"), &[from, to], Init::Normal { std });
        let bias = self.parameter(&format!("{module}.bias"), &[to], Init::Zeros);
        self.node("Gemm", &[x, &weight, &bias], &[module], &[])
    }

    /// A linear layer without bias: weight `[out, in]`.
    fn linear(&mut self, x: &str, module: &str, [from, to]: [u64; 2], std: f32) -> String {
        let weight = self.parameter(&format!("{module}.weight"), &[to, from], Init::Normal { std });
        self.node("Gemm", &[x, &weight], &[module], &[("transB", Attribute::Int(1))])
    }

    /// Token embeddings as rows.
    fn embedding(&mut self, weight: &str) -> String {
        let (vocab, dim) = (self.sizes.vocab, self.sizes.dim);
        let weight = self.weight(weight, &[vocab, dim]);
        self.node("Gather", &[&weight, "input_ids"], &["embedding"], &[("axis", Attribute::Int(0))])
    }

    /// Causal attention of rows `[batch * seq, heads * d]`.
    fn attention(&mut self, module: &str, [q, k, v]: [&str; 3]) -> String {
        let split = |b: &mut Self, x: &str, rows: &str| b.node("Reshape", &[x, rows], &[&format!("{x}.split")], &[]);
        let v = split(self, v, "kv_split");
        let (heads, kv_heads) = (self.sizes.heads as i64, self.sizes.kv_heads as i64);
        let attributes =
            [("q_num_heads", Attribute::Int(heads)), ("kv_num_heads", Attribute::Int(kv_heads)), ("is_causal", Attribute::Int(1))];
        let y = self.node("Attention", &[q, k, &v], &[&format!("{module}.attention")], &attributes);
        self.node("Reshape", &[&y, "rows"], &[&format!("{module}.attention.rows")], &[])
    }

    fn residual(&mut self, x: &str, y: &str) -> String {
        self.node("Add", &[x, y], &[&format!("{y}.residual")], &[])
    }

    fn gpt2(&mut self) -> String {
        let Sizes { layers, dim, ffn, seq, .. } = self.sizes;
        self.ints("kv_split", &[-1, seq as i64, dim as i64]);
        let tokens = self.embedding("transformer.wte.weight");
        let positions = self.weight("transformer.wpe.weight", &[seq, dim]);
        let x = self.node("Add", &[&tokens, &positions], &["transformer.wpe"], &[]);
        let mut x = self.node("Reshape", &[&x, "rows"], &["embedding.rows"], &[]);
        for n in 0..layers {
            let module = format!("transformer.h.{n}");
            let at = |name: &str| format!("{module}.{name}");
            let y = self.layer_norm(&x, &at("ln_1"));
            let y = self.conv1d(&y, &at("attn.c_attn"), [dim, 3 * dim], STD);
            let parts = [at("attn.q"), at("attn.k"), at("attn.v")];
            let split = [("axis", Attribute::Int(1)), ("num_outputs", Attribute::Int(3))];
            self.node("Split", &[&y], &[&parts[0], &parts[1], &parts[2]], &split);
            let [q, k] = [&parts[0], &parts[1]].map(|p| self.node("Reshape", &[p, "kv_split"], &[&format!("{p}.split")], &[]));
            let y = self.attention(&at("attn"), [&q, &k, &parts[2]]);
            let y = self.conv1d(&y, &at("attn.c_proj"), [dim, dim], self.residual_std);
            x = self.residual(&x, &y);
            let y = self.layer_norm(&x, &at("ln_2"));
            let y = self.conv1d(&y, &at("mlp.c_fc"), [dim, ffn], STD);
            let y = self.node("Gelu", &[&y], &[&at("mlp.act")], &[("approximate", Attribute::String("tanh".into()))]);
            let y = self.conv1d(&y, &at("mlp.c_proj"), [ffn, dim], self.residual_std);
            x = self.residual(&x, &y);
        }
        self.head = if self.sizes.tied { "transformer.wte.weight" } else { "lm_head.weight" };
        self.layer_norm(&x, "transformer.ln_f")
    }

    fn llama(&mut self) -> String {
        let Sizes { layers, dim, heads, kv_heads, ffn, seq, .. } = self.sizes;
        let head = dim / heads;
        self.ints("q_split", &[-1, seq as i64, dim as i64]);
        self.ints("kv_split", &[-1, seq as i64, (kv_heads * head) as i64]);
        self.angles(head);
        let x = self.embedding("model.embed_tokens.weight");
        let mut x = self.node("Reshape", &[&x, "rows"], &["embedding.rows"], &[]);
        for n in 0..layers {
            let module = format!("model.layers.{n}");
            let at = |name: &str| format!("{module}.{name}");
            let y = self.rms_norm(&x, &at("input_layernorm"));
            let q = self.linear(&y, &at("self_attn.q_proj"), [dim, dim], STD);
            let k = self.linear(&y, &at("self_attn.k_proj"), [dim, kv_heads * head], STD);
            let v = self.linear(&y, &at("self_attn.v_proj"), [dim, kv_heads * head], STD);
            let q = self.rotated(&q, "q_split", heads);
            let k = self.rotated(&k, "kv_split", kv_heads);
            let y = self.attention(&at("self_attn"), [&q, &k, &v]);
            let y = self.linear(&y, &at("self_attn.o_proj"), [dim, dim], self.residual_std);
            x = self.residual(&x, &y);
            let y = self.rms_norm(&x, &at("post_attention_layernorm"));
            let gate = self.linear(&y, &at("mlp.gate_proj"), [dim, ffn], STD);
            let up = self.linear(&y, &at("mlp.up_proj"), [dim, ffn], STD);
            let sigmoid = self.node("Sigmoid", &[&gate], &[&at("mlp.sigmoid")], &[]);
            let silu = self.node("Mul", &[&gate, &sigmoid], &[&at("mlp.act")], &[]);
            let y = self.node("Mul", &[&silu, &up], &[&at("mlp.gated")], &[]);
            let y = self.linear(&y, &at("mlp.down_proj"), [ffn, dim], self.residual_std);
            x = self.residual(&x, &y);
        }
        self.head = if self.sizes.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        self.rms_norm(&x, "model.norm")
    }

    /// Cosines and sines `[1, seq, head / 2]`, computed by nodes that fold, so that the file stays small.
    fn angles(&mut self, head: u64) {
        for (name, n) in [("zero", 0), ("one", 1), ("seq", self.sizes.seq as i64)] {
            self.parts.int(name, n);
        }
        let frequency = |i: u64| ROTARY_BASE.powf(-((2 * i) as f64) / head as f64) as f32;
        let frequencies: Vec<f32> = (0..head / 2).map(frequency).collect();
        self.parts.floats("rotary.frequencies", &frequencies);
        self.ints("rotary.column", &[1, -1, 1]);
        let x = self.node("Range", &["zero", "seq", "one"], &["rotary.positions"], &[]);
        let x = self.node("Cast", &[&x], &["rotary.floats"], &[("to", Attribute::Int(1))]);
        let x = self.node("Reshape", &[&x, "rotary.column"], &["rotary.rows"], &[]);
        let x = self.node("Mul", &[&x, "rotary.frequencies"], &["rotary.angles"], &[]);
        self.node("Cos", &[&x], &["rotary.cos"], &[]);
        self.node("Sin", &[&x], &["rotary.sin"], &[]);
    }

    fn rotated(&mut self, x: &str, split: &str, heads: u64) -> String {
        let x = self.node("Reshape", &[x, split], &[&format!("{x}.split")], &[]);
        let attributes = [("num_heads", Attribute::Int(heads as i64))];
        self.node("RotaryEmbedding", &[&x, "rotary.cos", "rotary.sin"], &[&format!("{x}.rotated")], &attributes)
    }

    fn loss(&mut self, x: &str) {
        let head = self.head;
        self.weight(head, &[self.sizes.vocab, self.sizes.dim]);
        let logits = self.node("Gemm", &[x, head], &["lm_head"], &[("transB", Attribute::Int(1))]);
        let labels = self.node("Reshape", &["labels", "flat"], &["labels.flat"], &[]);
        let attributes = [("ignore_index", Attribute::Int(-100)), ("reduction", Attribute::String("mean".into()))];
        self.node("SoftmaxCrossEntropyLoss", &[&logits, &labels], &["loss"], &attributes);
        self.parts.model.outputs.push(ModelOutput { name: "loss".into(), elem: Some(Elem::F32) });
    }
}
