//! Reads the printed form of a graph.

mod lexer;

use super::*;
use crate::Error;
use fp8c_kernels::program::{FloatBits, Kind, Literal, Mask, PoolOp, Rule, Window};
use lexer::{Line, float_of, variant_of};
use std::collections::HashMap;

/// Reads a graph as [`Graph`]'s `Display` prints it. Data that the text has as a hash is looked up in `data`.
///
/// # Errors
/// [`Error::Model`] naming the line, also where data is missing or a node does not fit its inputs.
pub fn parse(text: &str, data: &[Arc<ConstData>]) -> Result<Graph, Error> {
    let mut reader = Reader {
        graph: Graph::default(),
        values: HashMap::new(),
        epoch: Epoch::Forward,
        data: data.iter().map(|d| (d.digest(), d.clone())).collect(),
    };
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let read = Line::new(line).and_then(|mut line| {
            reader.line(&mut line)?;
            if line.is_empty() { Ok(()) } else { Err("has more than it needs".into()) }
        });
        read.map_err(|reason| Error::Model { path: "graph".into(), reason: format!("line {} {reason}", i + 1) })?;
    }
    Ok(reader.graph)
}

struct Reader {
    graph: Graph,
    /// By printed number.
    values: HashMap<u32, ValueId>,
    epoch: Epoch,
    data: HashMap<String, Arc<ConstData>>,
}

impl Reader {
    fn line(&mut self, line: &mut Line) -> Result<(), String> {
        if line.has('%') {
            return self.node(line);
        }
        match line.word()?.as_str() {
            "parameter" => self.parameter(line)?,
            "forward" => self.epoch = Epoch::Forward,
            "backward" => self.epoch = Epoch::Backward,
            "update" => self.epoch = Epoch::Update,
            "output" => {
                let name = line.text()?;
                let value = self.value(line)?;
                self.graph.outputs.push(Output { name, value });
            }
            "loss" => self.graph.loss = Some(self.value(line)?),
            "gradient" => {
                let parameter = line.value()?;
                let value = self.value(line)?;
                self.graph.gradients.push(Gradient { parameter, value });
            }
            other => return Err(format!("begins with {other}")),
        }
        Ok(())
    }

    /// `%n`
    fn value(&self, line: &mut Line) -> Result<ValueId, String> {
        line.expect('%')?;
        let n = line.value()?;
        self.values.get(&n).copied().ok_or_else(|| format!("reads %{n}, which is not there"))
    }

    /// A node's line, after its first `%`.
    fn node(&mut self, line: &mut Line) -> Result<(), String> {
        let (mut numbers, mut types) = (vec![], vec![]);
        loop {
            numbers.push(line.value::<u32>()?);
            line.expect(':')?;
            types.push(line.ty()?);
            if !line.has(',') {
                break;
            }
            line.expect('%')?;
        }
        line.expect('=')?;
        let op = self.op(line, &types[0])?;
        line.expect('(')?;
        let mut inputs = vec![];
        while !line.has(')') {
            if !inputs.is_empty() {
                line.expect(',')?;
            }
            inputs.push(self.value(line)?);
        }
        let (pass, origin) = self.purpose(line)?;
        let site: Arc<str> = line.text()?.into();
        let results = match op.is_source() {
            true => vec![self.graph.add_source(op, types[0].clone(), &site)],
            false => self.graph.add(op, &inputs, &Provenance { pass, origin, site }).map_err(|e| e.to_string())?,
        };
        let given: Vec<&TensorType> = results.iter().map(|&v| self.graph.ty(v)).collect();
        if given != types.iter().collect::<Vec<_>>() {
            return Err(format!("states the types {types:?}, but its inputs give {given:?}"));
        }
        if numbers.into_iter().zip(results).any(|(n, v)| self.values.insert(n, v).is_some()) {
            return Err("defines a value again".into());
        }
        Ok(())
    }

    /// `dgrad of %n @`, either part of which may be absent.
    fn purpose(&self, line: &mut Line) -> Result<(Pass, Option<NodeId>), String> {
        let (mut pass, mut origin) = (Pass::Fprop, None);
        while !line.has('@') {
            match line.word()?.as_str() {
                "loss" => pass = Pass::Loss,
                "dgrad" => pass = Pass::Dgrad,
                "wgrad" => pass = Pass::Wgrad,
                "update" => pass = Pass::Update,
                "of" => origin = Some(self.graph.values[self.value(line)?.index()].node),
                other => return Err(format!("is of the unknown pass {other}")),
            }
        }
        match pass.epoch() == self.epoch {
            true => Ok((pass, origin)),
            false => Err(format!("is of the pass {}, but stands under {}", pass.name(), text::epoch_name(self.epoch))),
        }
    }

    fn parameter(&mut self, line: &mut Line) -> Result<(), String> {
        if line.value::<usize>()? != self.graph.parameters.len() {
            return Err("has a parameter out of order".into());
        }
        let (name, ty) = (line.text()?, line.ty()?);
        let trainable = line.attribute("trainable")?;
        line.key("source")?;
        let source = line.text()?;
        line.key("perm")?;
        let outside_perm = line.option(|l| l.list(Line::value))?;
        line.key("init")?;
        let init = match line.word()?.as_str() {
            "data" => Init::Data(self.constant(line, &ty)?),
            "file" => Init::File {
                path: line.text()?.into(),
                offset: line.attribute("offset")?,
                bytes: line.attribute("bytes")?,
                dtype: source_dtype(line)?,
            },
            "normal" => Init::Normal { std: line.float()? },
            "uniform" => Init::Uniform { low: line.float()?, high: line.float()? },
            "zeros" => Init::Zeros,
            "ones" => Init::Ones,
            other => return Err(format!("has the unknown initial value {other}")),
        };
        self.graph.parameters.push(Parameter { name, source, trainable, outside_perm, init, ty });
        Ok(())
    }

    /// `[..]`, `all [x]` or `sha256 <hash>`, of a type.
    fn constant(&self, line: &mut Line, ty: &TensorType) -> Result<Arc<ConstData>, String> {
        let all = match line.has_list() {
            true => false,
            false => match line.word()?.as_str() {
                "all" => true,
                "sha256" => {
                    let hash = line.word()?;
                    let found = self.data.get(&hash).filter(|d| d.ty == *ty);
                    return found.cloned().ok_or_else(|| format!("names data {hash}, which was not given"));
                }
                other => return Err(format!("has {other} where data must be")),
            },
        };
        if ty.elements() > eval::MAX_ELEMENTS {
            return Err("has a constant that is too large".into());
        }
        let n = ty.elements() as usize;
        let data = if ty.dtype.is_float() {
            let mut v: Vec<f64> = line.list(|l| l.float().map(f64::from))?;
            v.resize(if all { n } else { v.len() }, v.first().copied().unwrap_or(0.0));
            eval::Data::Float(v)
        } else {
            let mut v: Vec<i64> = line.list(Line::value)?;
            v.resize(if all { n } else { v.len() }, v.first().copied().unwrap_or(0));
            eval::Data::Int(v)
        };
        if data.len() != n {
            return Err(format!("has {} elements of {n}", data.len()));
        }
        eval::Tensor { shape: ty.shape.clone(), data }.to_const(ty).map(Arc::new)
    }

    fn op(&mut self, line: &mut Line, ty: &TensorType) -> Result<Op, String> {
        let name = line.word()?;
        let op = match name.as_str() {
            "input" => Op::Input { name: line.text()? },
            "parameter" => Op::Parameter(line.value()?),
            "constant" => Op::Constant(self.constant(line, ty)?),
            "state" => Op::State {
                parameter: line.attribute("parameter")?,
                slot: line.attribute("slot")?,
                dtype: line.dtype_attribute()?,
                grouped: line.attribute("grouped")?,
            },
            "control" => Op::Control,
            "decay_of" => Op::DecayOf(line.value()?),
            "sum_squares" => Op::SumSquares,
            "finish_norm" => Op::FinishNorm { accumulation: line.attribute("accumulation")? },
            "adamw" => optimize(line, Rule::AdamW)?,
            "sgd" => optimize(line, Rule::Sgd)?,
            "lion" => optimize(line, Rule::Lion)?,
            "accumulate_gradient" => Op::AccumulateGradient,
            "quantize" => {
                line.key("layout")?;
                Op::Quantize { layout: line.variant()?, power_of_two: line.attribute("power_of_two")? }
            }
            "scaled_matmul" => {
                Op::ScaledMatmul { block_b: line.attribute("block_b")?, shape: line.numbers("shape")?, dtype: line.dtype_attribute()? }
            }
            name => match core(name, line)? {
                Some(op) => op,
                None => composite(name, line)?,
            },
        };
        Ok(op)
    }
}

fn core(name: &str, line: &mut Line) -> Result<Option<Op>, String> {
    Ok(Some(match name {
        "map" => {
            let dtype = line.dtype()?;
            Op::Map(expr(line)?, dtype)
        }
        "reduce" => Op::Reduce { op: line.variant()?, axes: line.numbers("axes")?, dtype: line.dtype_attribute()? },
        "matmul" => Op::Matmul { trans_a: line.attribute("trans_a")?, trans_b: line.attribute("trans_b")?, dtype: line.dtype_attribute()? },
        "reshape" => Op::Reshape(line.list(Line::value)?),
        "broadcast" => Op::Broadcast(line.list(Line::value)?),
        "transpose" => Op::Transpose(line.list(Line::value)?),
        "slice" => Op::Slice { starts: line.numbers("starts")?, steps: line.numbers("steps")?, sizes: line.numbers("sizes")? },
        "pad" => Op::Pad { low: line.numbers("low")?, high: line.numbers("high")? },
        "concat" => Op::Concat { axis: line.attribute("axis")? },
        "iota" => Op::Iota { shape: line.list(Line::value)?, axis: line.attribute("axis")? },
        "take" => Op::Take,
        "mask_gradient" => Op::MaskGradient,
        "put_add" => Op::PutAdd { extent: line.attribute("extent")?, dtype: line.dtype_attribute()? },
        "cum_sum" => {
            Op::CumSum { axis: line.attribute("axis")?, exclusive: line.attribute("exclusive")?, reverse: line.attribute("reverse")? }
        }
        _ => return Ok(None),
    }))
}

fn composite(name: &str, line: &mut Line) -> Result<Op, String> {
    Ok(match name {
        "conv" => Op::Conv(conv(line)?),
        "conv_dgrad" => Op::ConvDgrad(conv(line)?),
        "conv_wgrad" => Op::ConvWgrad(conv(line)?),
        "pool" => Op::Pool { op: pool(line)?, window: window(line)? },
        "pool_grad" => Op::PoolGrad { op: pool(line)?, window: window(line)? },
        "norm" => Op::Norm(norm(line)?),
        "norm_grad" => Op::NormGrad(norm(line)?),
        "softmax" => Op::Softmax { log: line.attribute("log")? },
        "softmax_grad" => Op::SoftmaxGrad { log: line.attribute("log")? },
        "attention" => Op::Attention(attention(line)?),
        "attention_grad" => Op::AttentionGrad(attention(line)?),
        "rotary" => Op::Rotary {
            rotated: line.attribute("rotated")?,
            interleaved: line.attribute("interleaved")?,
            inverse: line.attribute("inverse")?,
        },
        "cross_entropy" => Op::CrossEntropy(cross_entropy(line)?),
        "cross_entropy_grad" => Op::CrossEntropyGrad(cross_entropy(line)?),
        other => return Err(format!("has the unknown operator {other}")),
    })
}

fn optimize(line: &mut Line, rule: Rule) -> Result<Op, String> {
    line.key("moments")?;
    Ok(Op::Optimize(OptimizeOp { rule, moments: line.dtype()?, guarded: line.attribute("guarded")? }))
}

fn source_dtype(line: &mut Line) -> Result<SourceDType, String> {
    line.key("dtype")?;
    let word = line.word()?;
    let all = [SourceDType::F32, SourceDType::F16, SourceDType::Bf16, SourceDType::F64];
    all.into_iter().find(|d| text::source_name(*d) == word).ok_or_else(|| format!("has the unknown format {word}"))
}

fn bits(line: &mut Line) -> Result<FloatBits, String> {
    line.float().map(|x| FloatBits(x.to_bits()))
}

fn window(line: &mut Line) -> Result<Window, String> {
    Ok(Window {
        input: line.pair("input")?,
        output: line.pair("output")?,
        kernel: line.pair("kernel")?,
        stride: line.pair("stride")?,
        dilation: line.pair("dilation")?,
        pad: line.pair("pad")?,
    })
}

fn conv(line: &mut Line) -> Result<ConvOp, String> {
    Ok(ConvOp { groups: line.attribute("groups")?, window: window(line)?, dtype: line.dtype_attribute()? })
}

fn pool(line: &mut Line) -> Result<PoolOp, String> {
    match line.word()?.as_str() {
        "max" => Ok(PoolOp::Max),
        "average" => Ok(PoolOp::Average),
        "average_with_padding" => Ok(PoolOp::AverageWithPadding { pad_end: line.pair("pad_end")? }),
        other => Err(format!("has the unknown pooling {other}")),
    }
}

fn norm(line: &mut Line) -> Result<NormOp, String> {
    let (center, axes) = (line.attribute("center")?, line.attribute("axes")?);
    line.key("eps")?;
    Ok(NormOp { center, axes, eps: bits(line)?, bias: line.attribute("bias")?, dtype: line.dtype_attribute()? })
}

fn attention(line: &mut Line) -> Result<AttentionOp, String> {
    line.key("scale")?;
    let scale = bits(line)?;
    line.key("softcap")?;
    let softcap = line.option(bits)?;
    let causal = line.attribute("causal")?;
    line.key("window")?;
    let window = line.option(Line::value)?;
    let mask = Mask { causal, window, align_end: line.attribute("align_end")? };
    Ok(AttentionOp { scale, softcap, mask, bias: line.attribute("bias")? })
}

fn cross_entropy(line: &mut Line) -> Result<CrossEntropyOp, String> {
    line.key("ignore_index")?;
    let ignore_index = line.option(Line::value)?;
    Ok(CrossEntropyOp { ignore_index, sum: line.attribute("sum")?, dtype: line.dtype_attribute()? })
}

/// `{x0; 0.5; mul 0 1}`
fn expr(line: &mut Line) -> Result<Expr, String> {
    line.expect('{')?;
    let mut body = vec![];
    while !line.has('}') {
        if !body.is_empty() {
            line.expect(';')?;
        }
        let node = expr_node(line)?;
        if inputs(&node).any(|i| i as usize >= body.len()) {
            return Err("has an expression that is not in order".into());
        }
        body.push(node);
    }
    if body.is_empty() { Err("has an empty expression".into()) } else { Ok(Expr { body }) }
}

fn inputs(node: &ExprNode) -> impl Iterator<Item = u32> + use<> {
    let of = match *node {
        ExprNode::Operand(_) | ExprNode::Const { .. } => vec![],
        ExprNode::Unary(_, x) | ExprNode::Cast(x, _) => vec![x],
        ExprNode::Binary(_, x, y) => vec![x, y],
        ExprNode::Select(c, x, y) => vec![c, x, y],
    };
    of.into_iter()
}

fn expr_node(line: &mut Line) -> Result<ExprNode, String> {
    let word = line.word()?;
    if let Some(operand) = word.strip_prefix('x').and_then(|n| n.parse().ok()) {
        return Ok(ExprNode::Operand(operand));
    }
    if let Some(x) = float_of(&word) {
        return Ok(ExprNode::Const { kind: Kind::Float, value: Literal::float(x) });
    }
    Ok(match word.as_str() {
        "int" => ExprNode::Const { kind: Kind::Int, value: Literal::Int(line.value()?) },
        "bool" => ExprNode::Const { kind: Kind::Bool, value: Literal::Int(line.value()?) },
        "select" => ExprNode::Select(line.value()?, line.value()?, line.value()?),
        "cast" => ExprNode::Cast(line.value()?, line.dtype()?),
        name => match (variant_of(name), variant_of(name)) {
            (Some(op), _) => ExprNode::Unary(op, line.value()?),
            (_, Some(op)) => ExprNode::Binary(op, line.value()?, line.value()?),
            _ => return Err(format!("has the unknown function {name}")),
        },
    })
}
