//! The printed form of a graph: stable, complete, and read back by [`parse`](super::parse::parse).
//!
//! Values are numbered in order of definition, whatever their ids. Behind its operands a node has its pass and, named by its first result,
//! its origin, where those are not the forward pass and itself. Constants of up to 16 elements are written out, uniform ones as one
//! element, others as a hash of their data; a weight file is named without its directory.

use super::*;
use fp8c_kernels::program::{FloatBits, Kind, Literal, PoolOp, Window};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::{self, Display, Write};

/// Most elements that are written out.
const INLINE: u64 = 16;

impl Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.parameters.iter().enumerate() {
            writeln!(f, "parameter {i} {}", parameter(p))?;
        }
        let numbers = self.numbers();
        let number = |v: &ValueId| format!("%{}", numbers[v.index()]);
        let mut epoch = None;
        for node in &self.nodes {
            if epoch.replace(node.epoch()) != Some(node.epoch()) {
                writeln!(f, "{}", epoch_name(node.epoch()))?;
            }
            let results = node.results.iter().map(|v| format!("{}: {}", number(v), self.ty(*v))).collect::<Vec<_>>().join(", ");
            let attributes = attributes(&node.op);
            let gap = if attributes.is_empty() { "" } else { " " };
            let inputs = node.inputs.iter().map(number).collect::<Vec<_>>().join(", ");
            let pass = if node.pass == Pass::Fprop { String::new() } else { format!(" {}", node.pass.name()) };
            let origin = &self.node(node.origin).results[0];
            let of = if *origin == node.results[0] { String::new() } else { format!(" of {}", number(origin)) };
            writeln!(f, "  {results} = {}{gap}{attributes} ({inputs}){pass}{of} @{}", node.op.name(), quoted(&node.site))?;
        }
        for o in &self.outputs {
            writeln!(f, "output {} {}", quoted(&o.name), number(&o.value))?;
        }
        if let Some(loss) = &self.loss {
            writeln!(f, "loss {}", number(loss))?;
        }
        for g in &self.gradients {
            writeln!(f, "gradient {} {}", g.parameter, number(&g.value))?;
        }
        Ok(())
    }
}

impl Graph {
    /// The printed number of each value: the order of definition.
    fn numbers(&self) -> Vec<usize> {
        let mut numbers = vec![usize::MAX; self.values.len()];
        for (n, v) in self.nodes.iter().flat_map(|node| &node.results).enumerate() {
            numbers[v.index()] = n;
        }
        numbers
    }
}

impl Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, list(&self.shape))
    }
}

impl ConstData {
    /// The hash that stands for the data in a printed graph: the first 16 digits of a SHA-256.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.ty.to_string());
        hash.update(&self.bytes);
        hash.finalize().iter().take(8).fold(String::new(), |mut s, b| {
            // Writing to a string cannot fail.
            let _ = write!(s, "{b:02x}");
            s
        })
    }
}

pub(super) fn epoch_name(epoch: Epoch) -> &'static str {
    match epoch {
        Epoch::Forward => "forward",
        Epoch::Backward => "backward",
        Epoch::Update => "update",
    }
}

fn parameter(p: &Parameter) -> String {
    let perm = p.outside_perm.as_ref().map_or("none".into(), |p| list(p));
    let init = match &p.init {
        Init::Data(data) => format!("data {}", constant(data)),
        Init::File { path, offset, bytes, dtype } => {
            let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
            format!("file {} offset={offset} bytes={bytes} dtype={}", quoted(&name), source_name(*dtype))
        }
        Init::Normal { std } => format!("normal {}", float(*std)),
        Init::Uniform { low, high } => format!("uniform {} {}", float(*low), float(*high)),
        Init::Zeros => "zeros".into(),
        Init::Ones => "ones".into(),
    };
    format!("{} {} trainable={} source={} perm={perm} init={init}", quoted(&p.name), p.ty, p.trainable, quoted(&p.source))
}

pub(super) fn source_name(dtype: SourceDType) -> &'static str {
    match dtype {
        SourceDType::F32 => "f32",
        SourceDType::F16 => "f16",
        SourceDType::Bf16 => "bf16",
        SourceDType::F64 => "f64",
    }
}

/// A string with quotes and escapes, as JSON has it.
fn quoted(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

pub(super) fn list<T: Display>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}

/// The name that serde gives a plain variant.
fn variant<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(s)) => s,
        _ => "?".into(),
    }
}

/// Shortest form that reads back to the same bits.
fn float(x: f32) -> String {
    if x.is_nan() { format!("nan_{:08x}", x.to_bits()) } else { format!("{x:?}") }
}

fn bits(b: FloatBits) -> String {
    float(f32::from_bits(b.0))
}

fn option<T>(value: &Option<T>, show: impl Fn(&T) -> String) -> String {
    value.as_ref().map_or("none".into(), show)
}

fn constant(data: &ConstData) -> String {
    let n = data.ty.elements();
    let size = data.ty.dtype.size() as usize;
    let uniform = n > INLINE && data.bytes.chunks_exact(size).all(|c| c == &data.bytes[..size]);
    let shown = if uniform { 1 } else { n as usize };
    let items: Option<Vec<String>> = match data.ty.dtype {
        _ if n > INLINE && !uniform => None,
        DType::E4m3 => None,
        d if d.is_float() => {
            let values = data.to_f32();
            (!values.iter().any(|x| x.is_nan())).then(|| values.iter().take(shown).map(|x| float(*x)).collect())
        }
        _ => Some(data.to_i64().iter().take(shown).map(i64::to_string).collect()),
    };
    match items {
        Some(items) => format!("{}{}", if uniform { "all " } else { "" }, list(&items)),
        None => format!("sha256 {}", data.digest()),
    }
}

fn window(w: &Window) -> String {
    let Window { input, output, kernel, stride, dilation, pad } = w;
    let parts = [("input", input), ("output", output), ("kernel", kernel), ("stride", stride), ("dilation", dilation), ("pad", pad)];
    parts.map(|(name, v)| format!("{name}={}", list(v))).join(" ")
}

fn pool(op: &PoolOp, w: &Window) -> String {
    match op {
        PoolOp::Max => format!("max {}", window(w)),
        PoolOp::Average => format!("average {}", window(w)),
        PoolOp::AverageWithPadding { pad_end } => format!("average_with_padding pad_end={} {}", list(pad_end), window(w)),
    }
}

fn expr(e: &Expr) -> String {
    let node = |n: &ExprNode| match n {
        ExprNode::Operand(i) => format!("x{i}"),
        ExprNode::Const { kind: Kind::Float, value: Literal::Float(b) } => bits(*b),
        ExprNode::Const { kind: Kind::Float, value: Literal::Int(i) } => float(*i as f32),
        ExprNode::Const { kind, value } => {
            let value = match value {
                Literal::Int(i) => *i,
                Literal::Float(b) => f32::from_bits(b.0) as i64,
            };
            format!("{} {value}", variant(kind))
        }
        ExprNode::Unary(op, x) => format!("{} {x}", variant(op)),
        ExprNode::Binary(op, x, y) => format!("{} {x} {y}", variant(op)),
        ExprNode::Select(c, x, y) => format!("select {c} {x} {y}"),
        ExprNode::Cast(x, to) => format!("cast {x} {to}"),
    };
    format!("{{{}}}", e.body.iter().map(node).collect::<Vec<_>>().join("; "))
}

fn conv(c: &ConvOp) -> String {
    format!("groups={} {} dtype={}", c.groups, window(&c.window), c.dtype)
}

fn attributes(op: &Op) -> String {
    match op {
        Op::Input { name } => quoted(name),
        Op::Parameter(p) | Op::DecayOf(p) => p.to_string(),
        Op::Constant(data) => constant(data),
        Op::State { parameter, slot, dtype, grouped } => format!("parameter={parameter} slot={slot} dtype={dtype} grouped={grouped}"),
        Op::Map(e, dtype) => format!("{dtype} {}", expr(e)),
        Op::Reduce { op, axes, dtype } => format!("{} axes={} dtype={dtype}", variant(op), list(axes)),
        Op::Matmul { trans_a, trans_b, dtype } => format!("trans_a={trans_a} trans_b={trans_b} dtype={dtype}"),
        Op::Reshape(shape) | Op::Broadcast(shape) => list(shape),
        Op::Transpose(perm) => list(perm),
        Op::Slice { starts, steps, sizes } => format!("starts={} steps={} sizes={}", list(starts), list(steps), list(sizes)),
        Op::Pad { low, high } => format!("low={} high={}", list(low), list(high)),
        Op::Concat { axis } => format!("axis={axis}"),
        Op::Iota { shape, axis } => format!("{} axis={axis}", list(shape)),
        Op::PutAdd { extent, dtype } => format!("extent={extent} dtype={dtype}"),
        Op::CumSum { axis, exclusive, reverse } => format!("axis={axis} exclusive={exclusive} reverse={reverse}"),
        Op::Conv(c) | Op::ConvDgrad(c) | Op::ConvWgrad(c) => conv(c),
        Op::Pool { op, window } | Op::PoolGrad { op, window } => pool(op, window),
        Op::Norm(n) | Op::NormGrad(n) => {
            format!("center={} axes={} eps={} bias={} dtype={}", n.center, n.axes, bits(n.eps), n.bias, n.dtype)
        }
        Op::Softmax { log } | Op::SoftmaxGrad { log } => format!("log={log}"),
        Op::Attention(a) | Op::AttentionGrad(a) => {
            let (softcap, window) = (option(&a.softcap, |c| bits(*c)), option(&a.mask.window, u64::to_string));
            let mask = format!("causal={} window={window} align_end={}", a.mask.causal, a.mask.align_end);
            format!("scale={} softcap={softcap} {mask} bias={}", bits(a.scale), a.bias)
        }
        Op::Rotary { rotated, interleaved, inverse } => format!("rotated={rotated} interleaved={interleaved} inverse={inverse}"),
        Op::CrossEntropy(c) | Op::CrossEntropyGrad(c) => {
            format!("ignore_index={} sum={} dtype={}", option(&c.ignore_index, i64::to_string), c.sum, c.dtype)
        }
        Op::Quantize { layout, power_of_two } => format!("layout={} power_of_two={power_of_two}", variant(layout)),
        Op::ScaledMatmul { block_b, shape, dtype } => format!("block_b={block_b} shape={} dtype={dtype}", list(shape)),
        Op::FinishNorm { accumulation } => format!("accumulation={accumulation}"),
        Op::Optimize(o) => format!("moments={} guarded={}", o.moments, o.guarded),
        Op::Control | Op::Take | Op::MaskGradient | Op::SumSquares | Op::AccumulateGradient => String::new(),
    }
}
