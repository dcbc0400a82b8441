//! Causal language models of all families, node by node.

use super::rotary::Rotary;
use super::weights::Weights;
use crate::graph::Init;
use crate::import::build::{Attributes, ModelBuilder};
use crate::import::model::{Attribute, Dim, Elem, Model, ModelInput, ModelOutput};

/// A causal language model; names of layers' modules are relative to the layer.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub family: &'static str,
    pub dim: u64,
    pub vocab: u64,
    pub heads: u64,
    pub kv_heads: u64,
    /// Elements of a head.
    pub head: u64,
    pub ffn: u64,
    /// Most positions.
    pub longest: u64,
    pub embedding: &'static str,
    pub embedding_scale: Option<f32>,
    pub positions: Option<Positions>,
    pub norm: Norm,
    /// Linear layers store `[in, out]`, as GPT-2's `Conv1D` does, rather than `[out, in]`.
    pub in_out: bool,
    /// The module whose children `0`, `1`, .. are the layers.
    pub stack: &'static str,
    pub layers: Vec<Layer>,
    pub attention: Attention,
    pub mlp: Mlp,
    /// Attention and MLP read the same input, and both are added to it.
    pub parallel: bool,
    pub norms: Norms,
    pub last_norm: &'static str,
    /// The LM head; the embedding where absent.
    pub lm_head: Option<&'static str>,
    /// Logits are `cap * tanh(logits / cap)`.
    pub cap: Option<f32>,
    /// The rotary embeddings that layers choose from.
    pub rotary: Vec<Rotary>,
}

/// Learned positions: a table whose row `first` is position 0.
#[derive(Clone, Copy, Debug)]
pub struct Positions {
    pub weight: &'static str,
    pub rows: u64,
    pub first: u64,
}

/// How activations are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// With weight and bias.
    Layer {
        eps: f32,
    },
    Rms {
        eps: f32,
    },
    /// RMSNorm whose weight is stored less one.
    RmsPlusOne {
        eps: f32,
    },
}

/// What differs from one layer to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layer {
    /// Index of its rotary embedding.
    pub rotary: Option<usize>,
    /// How many positions back attention looks, its own included.
    pub window: Option<u64>,
}

/// The norms of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Norms {
    pub before_attention: &'static str,
    pub after_attention: Option<&'static str>,
    pub before_mlp: &'static str,
    pub after_mlp: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub qkv: Qkv,
    pub qkv_bias: bool,
    pub out: &'static str,
    pub out_bias: bool,
    /// Norms over each head's queries and keys.
    pub head_norms: Option<[&'static str; 2]>,
    /// `1 / sqrt(head)` where absent.
    pub scale: Option<f32>,
    pub cap: Option<f32>,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    Apart([&'static str; 3]),
    /// One layer: all queries, then all keys, then all values.
    Joined(&'static str),
    /// One layer: for each head its query, key and value.
    ByHead(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    pub kind: MlpKind,
    pub activation: Activation,
    pub bias: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum MlpKind {
    Plain {
        up: &'static str,
        down: &'static str,
    },
    Gated {
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// Gate and up in one layer, in this order.
    Joined {
        gate_up: &'static str,
        down: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Relu,
    Silu,
    Gelu,
    GeluTanh,
}

/// Makes the model: `input_ids` `[batch, seq]` to `logits` `[batch, seq, vocab]`.
///
/// # Errors
/// Those of [`Weights::take`].
pub fn build(decoder: &Decoder, batch: u64, seq: u64, weights: &mut Weights) -> Result<Model, String> {
    let model = Model { name: decoder.family.into(), opset: 23, ..Model::default() };
    let mut b = Builder { parts: ModelBuilder { model }, d: decoder, seq, weights };
    let shape = vec![Dim::Known(batch), Dim::Known(seq)];
    b.parts.model.inputs.push(ModelInput { name: "input_ids".into(), elem: Elem::I64, shape });
    b.tables();
    let mut x = b.embedding()?;
    for (n, layer) in decoder.layers.iter().enumerate() {
        x = b.layer(&x, &format!("{}.{n}", decoder.stack), *layer)?;
    }
    let x = b.norm(&x, decoder.last_norm)?;
    b.logits(&x)?;
    Ok(b.parts.model)
}

struct Builder<'a> {
    parts: ModelBuilder,
    d: &'a Decoder,
    seq: u64,
    weights: &'a mut Weights,
}

impl Builder<'_> {
    fn parameter(&mut self, name: &str, shape: &[u64]) -> Result<String, String> {
        if self.parts.has(name) {
            return Ok(name.into());
        }
        let init: Init = self.weights.take(name, shape)?;
        Ok(self.parts.parameter(name, shape, init))
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Attributes) -> String {
        self.parts.node(op, inputs, &[output], attributes)
    }

    /// Shapes, and what is computed from positions alone.
    fn tables(&mut self) {
        let d = self.d;
        let (seq, q, kv) = (self.seq as i64, (d.heads * d.head) as i64, (d.kv_heads * d.head) as i64);
        for (name, shape) in [
            ("rows", &[-1, d.dim as i64][..]),
            ("rows.heads", &[-1, q]),
            ("split.q", &[-1, seq, q]),
            ("split.kv", &[-1, seq, kv]),
            ("heads.q", &[-1, d.heads as i64, d.head as i64]),
            ("heads.kv", &[-1, d.kv_heads as i64, d.head as i64]),
            ("heads.qkv", &[-1, d.heads as i64, 3 * d.head as i64]),
            ("logits.shape", &[-1, seq, d.vocab as i64]),
            ("column", &[-1, 1]),
            ("line", &[1, -1]),
            ("cube", &[1, -1, 1]),
        ] {
            self.parts.ints(name, shape);
        }
        [("zero", 0), ("one", 1), ("seq", seq)].iter().for_each(|(name, n)| drop(self.parts.int(name, *n)));
        self.node("Range", &["zero", "seq", "one"], "positions", &[]);
        for (n, rotary) in d.rotary.iter().enumerate() {
            let at = |part: &str| format!("rotary.{n}.{part}");
            self.parts.floats(&at("frequencies"), &rotary.frequencies);
            let x = self.node("Cast", &["positions"], &at("floats"), &[("to", Attribute::Int(1))]);
            let x = self.node("Reshape", &[&x, "cube"], &at("positions"), &[]);
            let x = self.node("Mul", &[&x, &at("frequencies")], &at("angles"), &[]);
            self.node("Cos", &[&x], &at("cos"), &[]);
            self.node("Sin", &[&x], &at("sin"), &[]);
        }
        let windows: std::collections::BTreeSet<u64> = d.layers.iter().filter_map(|l| l.window).filter(|&w| w < self.seq).collect();
        for window in windows {
            let at = |part: &str| format!("window.{window}.{part}");
            self.parts.int(&at("length"), window as i64);
            let to = self.node("Reshape", &["positions", "column"], &at("to"), &[]);
            let from = self.node("Reshape", &["positions", "line"], &at("from"), &[]);
            let back = self.node("Sub", &[&to, &from], &at("back"), &[]);
            self.node("Less", &[&back, &at("length")], &at("mask"), &[]);
        }
    }

    fn embedding(&mut self) -> Result<String, String> {
        let d = self.d;
        let table = self.parameter(d.embedding, &[d.vocab, d.dim])?;
        let mut x = self.node("Gather", &[&table, "input_ids"], "embedding", &[("axis", Attribute::Int(0))]);
        if let Some(scale) = d.embedding_scale {
            self.parts.float("embedding.scale", scale);
            x = self.node("Mul", &[&x, "embedding.scale"], "embedding.scaled", &[]);
        }
        if let Some(p) = d.positions {
            let table = self.parameter(p.weight, &[p.rows, d.dim])?;
            self.parts.int("positions.first", p.first as i64);
            let at = self.node("Add", &["positions", "positions.first"], "positions.rows", &[]);
            let rows = self.node("Gather", &[&table, &at], "positions.embedding", &[("axis", Attribute::Int(0))]);
            x = self.node("Add", &[&x, &rows], "embedding.placed", &[]);
        }
        Ok(self.node("Reshape", &[&x, "rows"], "embedding.rows", &[]))
    }

    fn norm(&mut self, x: &str, module: &str) -> Result<String, String> {
        let weight = format!("{module}.weight");
        match self.d.norm {
            Norm::Layer { eps } => {
                let weight = self.parameter(&weight, &[self.d.dim])?;
                let bias = self.parameter(&format!("{module}.bias"), &[self.d.dim])?;
                Ok(self.node("LayerNormalization", &[x, &weight, &bias], module, &[("epsilon", Attribute::Float(eps))]))
            }
            _ => self.rms_norm(x, module, self.d.dim),
        }
    }

    fn rms_norm(&mut self, x: &str, module: &str, width: u64) -> Result<String, String> {
        let mut weight = self.parameter(&format!("{module}.weight"), &[width])?;
        let eps = match self.d.norm {
            Norm::Layer { eps } | Norm::Rms { eps } => eps,
            Norm::RmsPlusOne { eps } => {
                if !self.parts.has("norm.one") {
                    self.parts.float("norm.one", 1.0);
                }
                weight = self.node("Add", &[&weight, "norm.one"], &format!("{module}.scale"), &[]);
                eps
            }
        };
        Ok(self.node("RMSNormalization", &[x, &weight], module, &[("epsilon", Attribute::Float(eps))]))
    }

    fn linear(&mut self, x: &str, module: &str, [from, to]: [u64; 2], bias: bool) -> Result<String, String> {
        let shape = if self.d.in_out { [from, to] } else { [to, from] };
        let mut inputs = vec![x.to_string(), self.parameter(&format!("{module}.weight"), &shape)?];
        if bias {
            inputs.push(self.parameter(&format!("{module}.bias"), &[to])?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let transposed = [("transB", Attribute::Int(1))];
        Ok(self.node("Gemm", &inputs, module, if self.d.in_out { &[] } else { &transposed }))
    }

    fn layer(&mut self, x: &str, module: &str, layer: Layer) -> Result<String, String> {
        let norms = self.d.norms;
        let at = |name: &str| format!("{module}.{name}");
        let h = self.norm(x, &at(norms.before_attention))?;
        let mut y = self.attention(&h, module, layer)?;
        if let Some(norm) = norms.after_attention {
            y = self.norm(&y, &at(norm))?;
        }
        let attended = self.node("Add", &[x, &y], &at("attended"), &[]);
        let h = self.norm(if self.d.parallel { x } else { &attended }, &at(norms.before_mlp))?;
        let mut y = self.mlp(&h, module)?;
        if let Some(norm) = norms.after_mlp {
            y = self.norm(&y, &at(norm))?;
        }
        Ok(self.node("Add", &[&attended, &y], &at("output"), &[]))
    }

    fn attention(&mut self, x: &str, module: &str, layer: Layer) -> Result<String, String> {
        let (d, a) = (self.d, self.d.attention);
        let at = |name: &str| format!("{module}.attention.{name}");
        let [mut q, mut k, v] = self.projections(x, module)?;
        if let Some([q_norm, k_norm]) = a.head_norms {
            q = self.head_norm(&q, &format!("{module}.{q_norm}"), "heads.q")?;
            k = self.head_norm(&k, &format!("{module}.{k_norm}"), "heads.kv")?;
        }
        let q = self.placed(&q, &at("q.placed"), "split.q", d.heads, layer);
        let k = self.placed(&k, &at("k.placed"), "split.kv", d.kv_heads, layer);
        let v = self.node("Reshape", &[&v, "split.kv"], &at("v.placed"), &[]);
        let mut attributes = vec![
            ("q_num_heads", Attribute::Int(d.heads as i64)),
            ("kv_num_heads", Attribute::Int(d.kv_heads as i64)),
            ("is_causal", Attribute::Int(1)),
        ];
        attributes.extend(a.scale.map(|x| ("scale", Attribute::Float(x))));
        attributes.extend(a.cap.map(|x| ("softcap", Attribute::Float(x))));
        let mask = layer.window.filter(|&w| w < self.seq).map(|w| format!("window.{w}.mask"));
        let inputs: Vec<&str> = [q.as_str(), &k, &v].into_iter().chain(mask.as_deref()).collect();
        let y = self.node("Attention", &inputs, &at("heads"), &attributes);
        let y = self.node("Reshape", &[&y, "rows.heads"], &at("rows"), &[]);
        self.linear(&y, &format!("{module}.{}", a.out), [d.heads * d.head, d.dim], a.out_bias)
    }

    /// Queries, keys and values as rows.
    fn projections(&mut self, x: &str, module: &str) -> Result<[String; 3], String> {
        let (d, bias) = (self.d, self.d.attention.qkv_bias);
        let (q, kv) = (d.heads * d.head, d.kv_heads * d.head);
        let at = |name: &str| format!("{module}.attention.{name}");
        let parts = ["q", "k", "v"].map(at);
        let outputs = parts.each_ref().map(String::as_str);
        match d.attention.qkv {
            Qkv::Apart(names) => {
                let [qs, ks, vs] = [(names[0], q), (names[1], kv), (names[2], kv)]
                    .map(|(name, to)| self.linear(x, &format!("{module}.{name}"), [d.dim, to], bias));
                return Ok([qs?, ks?, vs?]);
            }
            Qkv::Joined(name) => {
                let joined = self.linear(x, &format!("{module}.{name}"), [d.dim, q + 2 * kv], bias)?;
                if !self.parts.has("split.joined") {
                    self.parts.ints("split.joined", &[q as i64, kv as i64, kv as i64]);
                }
                self.parts.node("Split", &[&joined, "split.joined"], &outputs, &[("axis", Attribute::Int(1))]);
            }
            Qkv::ByHead(name) => {
                let joined = self.linear(x, &format!("{module}.{name}"), [d.dim, 3 * q], bias)?;
                let heads = self.node("Reshape", &[&joined, "heads.qkv"], &at("by_head"), &[]);
                let split = [("axis", Attribute::Int(2)), ("num_outputs", Attribute::Int(3))];
                self.parts.node("Split", &[&heads], &outputs, &split);
            }
        }
        Ok(parts)
    }

    fn head_norm(&mut self, x: &str, module: &str, heads: &str) -> Result<String, String> {
        let x = self.node("Reshape", &[x, heads], &format!("{module}.heads"), &[]);
        self.rms_norm(&x, module, self.d.head)
    }

    /// Queries or keys as `[batch, seq, heads * head]`, turned where the layer has a rotary embedding.
    fn placed(&mut self, x: &str, name: &str, split: &str, heads: u64, layer: Layer) -> String {
        let x = self.node("Reshape", &[x, split], name, &[]);
        let Some(n) = layer.rotary else { return x };
        let mut attributes = vec![("num_heads", Attribute::Int(heads as i64))];
        let dims = self.d.rotary[n].dims();
        if dims < self.d.head {
            attributes.push(("rotary_embedding_dim", Attribute::Int(dims as i64)));
        }
        let tables = [format!("rotary.{n}.cos"), format!("rotary.{n}.sin")];
        self.node("RotaryEmbedding", &[&x, &tables[0], &tables[1]], &format!("{name}.rotated"), &attributes)
    }

    fn mlp(&mut self, x: &str, module: &str) -> Result<String, String> {
        let (d, m) = (self.d, self.d.mlp);
        let at = |name: &str| format!("{module}.{name}");
        let (inner, down) = match m.kind {
            MlpKind::Plain { up, down } => {
                let up = self.linear(x, &at(up), [d.dim, d.ffn], m.bias)?;
                (self.activation(&up, &at("act")), down)
            }
            MlpKind::Gated { gate, up, down } => {
                let gate = self.linear(x, &at(gate), [d.dim, d.ffn], m.bias)?;
                let up = self.linear(x, &at(up), [d.dim, d.ffn], m.bias)?;
                let act = self.activation(&gate, &at("act"));
                (self.node("Mul", &[&act, &up], &at("gated"), &[]), down)
            }
            MlpKind::Joined { gate_up, down } => {
                let joined = self.linear(x, &at(gate_up), [d.dim, 2 * d.ffn], m.bias)?;
                let parts = [at("gate"), at("up")];
                let split = [("axis", Attribute::Int(1)), ("num_outputs", Attribute::Int(2))];
                self.parts.node("Split", &[&joined], &[&parts[0], &parts[1]], &split);
                let act = self.activation(&parts[0], &at("act"));
                (self.node("Mul", &[&act, &parts[1]], &at("gated"), &[]), down)
            }
        };
        self.linear(&inner, &at(down), [d.ffn, d.dim], m.bias)
    }

    fn activation(&mut self, x: &str, name: &str) -> String {
        match self.d.mlp.activation {
            Activation::Relu => self.node("Relu", &[x], name, &[]),
            Activation::Gelu => self.node("Gelu", &[x], name, &[]),
            Activation::GeluTanh => self.node("Gelu", &[x], name, &[("approximate", Attribute::String("tanh".into()))]),
            Activation::Silu => {
                let sigmoid = self.node("Sigmoid", &[x], &format!("{name}.sigmoid"), &[]);
                self.node("Mul", &[x, &sigmoid], name, &[])
            }
        }
    }

    fn logits(&mut self, x: &str) -> Result<(), String> {
        let d = self.d;
        let head = self.parameter(d.lm_head.unwrap_or(d.embedding), &[d.vocab, d.dim])?;
        let mut y = self.node("Gemm", &[x, &head], "lm_head", &[("transB", Attribute::Int(1))]);
        if let Some(cap) = d.cap {
            self.parts.float("logits.cap", cap);
            let shrunk = self.node("Div", &[&y, "logits.cap"], "logits.shrunk", &[]);
            let tanh = self.node("Tanh", &[&shrunk], "logits.tanh", &[]);
            y = self.node("Mul", &[&tanh, "logits.cap"], "logits.capped", &[]);
        }
        self.node("Reshape", &[&y, "logits.shape"], "logits", &[]);
        self.parts.model.outputs.push(ModelOutput { name: "logits".into(), elem: Some(Elem::F32) });
        Ok(())
    }
}
