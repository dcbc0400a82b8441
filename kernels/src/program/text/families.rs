//! Kernels that are a handful of numbers.

use super::record::{Field, Record, lines};
use crate::KernelError;
use crate::program::*;

/// The lines of a kernel that is not a row program.
pub(super) fn records(kernel: &Kernel) -> Vec<Record> {
    let first = Record::kernel(kernel.family());
    match kernel {
        // Printed as a listing.
        Kernel::Row(_) => Vec::new(),
        Kernel::Contract(k) => {
            let head = first.with("batch", &k.batch).with("m", &k.m).with("n", &k.n).with("k", &k.k);
            vec![epilogue(head, &k.epilogue), matrix("a", &k.a), matrix("b", &k.b), matrix("c", &k.c)]
        }
        Kernel::ScaledContract(k) => {
            let head = first.with("m", &k.m).with("n", &k.n).with("k", &k.k).with("b_scales", &k.b_scales).with("c", &k.c);
            vec![epilogue(head, &k.epilogue)]
        }
        Kernel::Quantize(k) => {
            let head = first.with("rows", &k.rows).with("cols", &k.cols).with("source", &k.source);
            vec![head.with("layout", &k.layout).with("power_of_two", &k.power_of_two)]
        }
        Kernel::Attention(k) => attention(first, k),
        Kernel::AttentionGrad(k) => attention(first, k),
        Kernel::Conv(k) => {
            let head = first.with("pass", &k.pass).with("batch", &k.batch).with("cin", &k.cin).with("cout", &k.cout);
            let head = head.with("groups", &k.groups).with("bias", &k.bias).with("dtype", &k.dtype).with("weight", &k.weight);
            vec![head, window(&k.window)]
        }
        Kernel::Pool(k) => {
            let pad_end = if let PoolOp::AverageWithPadding { pad_end } = k.op { Some(pad_end) } else { None };
            let head = first.with("op", &PoolName::of(k.op)).with("pad_end", &pad_end).with("backward", &k.backward);
            vec![head.with("planes", &k.planes).with("dtype", &k.dtype), window(&k.window)]
        }
        Kernel::ScatterAdd(k) => {
            let head = first.with("outer", &k.outer).with("picks", &k.picks).with("inner", &k.inner).with("extent", &k.extent);
            let head = head.with("index_outer", &k.index_outer).with("index_inner", &k.index_inner);
            vec![head.with("src", &k.src).with("index", &k.index).with("dst", &k.dst).with("accumulate", &k.accumulate)]
        }
        Kernel::Scan(k) => {
            let head = first.with("outer", &k.outer).with("extent", &k.extent).with("inner", &k.inner);
            vec![head.with("exclusive", &k.exclusive).with("reverse", &k.reverse).with("dtype", &k.dtype)]
        }
        Kernel::Update(k) => {
            let head = first.with("rule", &k.rule).with("elements", &k.elements).with("gradient", &k.gradient);
            vec![head.with("master", &k.master).with("moments", &k.moments).with("guarded", &k.guarded)]
        }
    }
}

fn epilogue(head: Record, e: &Epilogue) -> Record {
    head.with("bias", &e.bias).with("accumulate", &e.accumulate)
}

fn read_epilogue(r: &Record) -> Result<Epilogue, KernelError> {
    Ok(Epilogue { bias: r.get("bias")?, accumulate: r.get("accumulate")? })
}

fn matrix(name: &str, m: &Matrix) -> Record {
    let r = Record::part(name).with("dtype", &m.dtype).with("elements", &m.elements).with("offset", &m.offset);
    r.with("batch_strides", &m.batch_strides).with("row_stride", &m.row_stride).with("col_stride", &m.col_stride)
}

fn read_matrix(r: &Record) -> Result<Matrix, KernelError> {
    Ok(Matrix {
        dtype: r.get("dtype")?,
        elements: r.get("elements")?,
        offset: r.get("offset")?,
        batch_strides: r.get("batch_strides")?,
        row_stride: r.get("row_stride")?,
        col_stride: r.get("col_stride")?,
    })
}

fn window(w: &Window) -> Record {
    let r = Record::part("window").with("input", &w.input).with("output", &w.output).with("kernel", &w.kernel);
    r.with("stride", &w.stride).with("dilation", &w.dilation).with("pad", &w.pad)
}

fn read_window(r: &Record) -> Result<Window, KernelError> {
    Ok(Window {
        input: r.get("input")?,
        output: r.get("output")?,
        kernel: r.get("kernel")?,
        stride: r.get("stride")?,
        dilation: r.get("dilation")?,
        pad: r.get("pad")?,
    })
}

fn heads(name: &str, h: &Heads) -> Record {
    let r = Record::part(name).with("elements", &h.elements).with("offset", &h.offset);
    r.with("batch", &h.batch).with("head", &h.head).with("position", &h.position)
}

fn read_heads(r: &Record) -> Result<Heads, KernelError> {
    Ok(Heads {
        elements: r.get("elements")?,
        offset: r.get("offset")?,
        batch: r.get("batch")?,
        head: r.get("head")?,
        position: r.get("position")?,
    })
}

const GRADS: [&str; 4] = ["do", "dq", "dk", "dv"];

fn attention(first: Record, k: &Attention) -> Vec<Record> {
    let r = first.with("batch", &k.batch).with("heads", &k.heads).with("kv_heads", &k.kv_heads).with("q_len", &k.q_len);
    let r = r.with("kv_len", &k.kv_len).with("depth", &k.depth).with("v_depth", &k.v_depth).with("dtype", &k.dtype);
    let mut all = vec![r.with("scale", &k.scale).with("softcap", &k.softcap)];
    let mask = Record::part("mask").with("causal", &k.mask.causal).with("window", &k.mask.window);
    all.push(mask.with("align_end", &k.mask.align_end));
    all.extend(k.bias.map(|b| {
        let r = Record::part("bias").with("dtype", &b.dtype).with("elements", &b.elements).with("batch", &b.batch);
        r.with("head", &b.head).with("query", &b.query).with("key", &b.key)
    }));
    let operands = [("q", &k.q), ("k", &k.k), ("v", &k.v), ("o", &k.o)];
    all.extend(operands.into_iter().chain(GRADS.into_iter().zip(&k.grads)).map(|(name, h)| heads(name, h)));
    all
}

/// The lines of one kernel.
struct Parts(Vec<Record>);

impl Parts {
    fn part(&self, name: &str) -> Result<&Record, KernelError> {
        self.find(name).map_or_else(|| self.0[0].fail(format!("{} has no part {name}", self.0[0].name())), Ok)
    }

    fn find(&self, name: &str) -> Option<&Record> {
        self.0[1..].iter().find(|r| r.name() == name)
    }

    fn attention(&self) -> Result<Attention, KernelError> {
        let (r, mask) = (&self.0[0], self.part("mask")?);
        let bias = match self.find("bias") {
            None => None,
            Some(b) => Some(Bias {
                dtype: b.get("dtype")?,
                elements: b.get("elements")?,
                batch: b.get("batch")?,
                head: b.get("head")?,
                query: b.get("query")?,
                key: b.get("key")?,
            }),
        };
        let operand = |name: &str| read_heads(self.part(name)?);
        Ok(Attention {
            batch: r.get("batch")?,
            heads: r.get("heads")?,
            kv_heads: r.get("kv_heads")?,
            q_len: r.get("q_len")?,
            kv_len: r.get("kv_len")?,
            depth: r.get("depth")?,
            v_depth: r.get("v_depth")?,
            scale: r.get("scale")?,
            softcap: r.get("softcap")?,
            mask: Mask { causal: mask.get("causal")?, window: mask.get("window")?, align_end: mask.get("align_end")? },
            bias,
            dtype: r.get("dtype")?,
            q: operand("q")?,
            k: operand("k")?,
            v: operand("v")?,
            o: operand("o")?,
            grads: [operand(GRADS[0])?, operand(GRADS[1])?, operand(GRADS[2])?, operand(GRADS[3])?],
        })
    }

    fn contract(&self) -> Result<Contract, KernelError> {
        let r = &self.0[0];
        Ok(Contract {
            batch: r.get("batch")?,
            m: r.get("m")?,
            n: r.get("n")?,
            k: r.get("k")?,
            a: read_matrix(self.part("a")?)?,
            b: read_matrix(self.part("b")?)?,
            c: read_matrix(self.part("c")?)?,
            epilogue: read_epilogue(r)?,
        })
    }

    fn conv(&self) -> Result<Conv, KernelError> {
        let r = &self.0[0];
        Ok(Conv {
            pass: r.get("pass")?,
            batch: r.get("batch")?,
            cin: r.get("cin")?,
            cout: r.get("cout")?,
            groups: r.get("groups")?,
            window: read_window(self.part("window")?)?,
            bias: r.get("bias")?,
            dtype: r.get("dtype")?,
            weight: r.get("weight")?,
        })
    }

    fn pool(&self) -> Result<Pool, KernelError> {
        let r = &self.0[0];
        let op = match (r.get::<PoolName>("op")?, r.get("pad_end")?) {
            (PoolName::Max, None) => PoolOp::Max,
            (PoolName::Average, None) => PoolOp::Average,
            (PoolName::AverageWithPadding, Some(pad_end)) => PoolOp::AverageWithPadding { pad_end },
            _ => return r.fail("pad_end belongs to average_with_padding, and to it alone"),
        };
        let window = read_window(self.part("window")?)?;
        Ok(Pool { op, backward: r.get("backward")?, planes: r.get("planes")?, window, dtype: r.get("dtype")? })
    }
}

fn scaled_contract(r: &Record) -> Result<ScaledContract, KernelError> {
    let (m, n, k) = (r.get("m")?, r.get("n")?, r.get("k")?);
    Ok(ScaledContract { m, n, k, b_scales: r.get("b_scales")?, c: r.get("c")?, epilogue: read_epilogue(r)? })
}

fn quantize(r: &Record) -> Result<Quantize, KernelError> {
    Ok(Quantize {
        rows: r.get("rows")?,
        cols: r.get("cols")?,
        source: r.get("source")?,
        layout: r.get("layout")?,
        power_of_two: r.get("power_of_two")?,
    })
}

fn scatter_add(r: &Record) -> Result<ScatterAdd, KernelError> {
    Ok(ScatterAdd {
        outer: r.get("outer")?,
        picks: r.get("picks")?,
        inner: r.get("inner")?,
        extent: r.get("extent")?,
        index_outer: r.get("index_outer")?,
        index_inner: r.get("index_inner")?,
        src: r.get("src")?,
        index: r.get("index")?,
        dst: r.get("dst")?,
        accumulate: r.get("accumulate")?,
    })
}

fn update(r: &Record) -> Result<Update, KernelError> {
    Ok(Update {
        rule: r.get("rule")?,
        elements: r.get("elements")?,
        gradient: r.get("gradient")?,
        master: r.get("master")?,
        moments: r.get("moments")?,
        guarded: r.get("guarded")?,
    })
}

fn scan(r: &Record) -> Result<Scan, KernelError> {
    Ok(Scan {
        outer: r.get("outer")?,
        extent: r.get("extent")?,
        inner: r.get("inner")?,
        exclusive: r.get("exclusive")?,
        reverse: r.get("reverse")?,
        dtype: r.get("dtype")?,
    })
}

/// Parses a kernel that is not a row program.
pub(super) fn parse(text: &str) -> Result<Kernel, KernelError> {
    let records = lines(text).map(|(line, text)| Record::read(line, text)).collect::<Result<Vec<_>, _>>()?;
    let parts = Parts(records);
    let Some(first) = parts.0.first() else {
        return Err(KernelError::Parse { line: 1, reason: "there is no kernel".into() });
    };
    match first.name() {
        "contract" => parts.contract().map(Kernel::Contract),
        "scaled_contract" => scaled_contract(first).map(Kernel::ScaledContract),
        "quantize" => quantize(first).map(Kernel::Quantize),
        "attention" => parts.attention().map(Kernel::Attention),
        "attention_grad" => parts.attention().map(Kernel::AttentionGrad),
        "conv" => parts.conv().map(Kernel::Conv),
        "pool" => parts.pool().map(Kernel::Pool),
        "scatter_add" => scatter_add(first).map(Kernel::ScatterAdd),
        "scan" => scan(first).map(Kernel::Scan),
        "update" => update(first).map(Kernel::Update),
        name => first.fail(format!("there is no kernel {name}")),
    }
}

/// A value with one of a few names.
fn spelled<T: Copy + PartialEq>(all: &[(T, &str)], value: T) -> String {
    all.iter().find(|(v, _)| *v == value).map_or(String::new(), |(_, name)| (*name).into())
}

fn unspelled<T: Copy>(all: &[(T, &str)], text: &str) -> Option<T> {
    all.iter().find(|(_, name)| *name == text).map(|(v, _)| *v)
}

const SCALE_GROUPS: &[(ScaleGroup, &str)] = &[(ScaleGroup::Block, "block"), (ScaleGroup::Row, "row")];
const RULES: &[(Rule, &str)] = &[(Rule::AdamW, "adamw"), (Rule::Sgd, "sgd"), (Rule::Lion, "lion")];
const PASSES: &[(ConvPass, &str)] = &[(ConvPass::Fprop, "fprop"), (ConvPass::Dgrad, "dgrad"), (ConvPass::Wgrad, "wgrad")];
const LAYOUTS: &[(Layout, &str)] = &[
    (Layout::Rows, "rows"),
    (Layout::Columns, "columns"),
    (Layout::RowsAndColumns, "rows_and_columns"),
    (Layout::Blocks, "blocks"),
    (Layout::BlocksBoth, "blocks_both"),
];

/// A pooling operator without its padding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PoolName {
    Max,
    Average,
    AverageWithPadding,
}

const POOLS: &[(PoolName, &str)] =
    &[(PoolName::Max, "max"), (PoolName::Average, "average"), (PoolName::AverageWithPadding, "average_with_padding")];

impl PoolName {
    fn of(op: PoolOp) -> PoolName {
        match op {
            PoolOp::Max => PoolName::Max,
            PoolOp::Average => PoolName::Average,
            PoolOp::AverageWithPadding { .. } => PoolName::AverageWithPadding,
        }
    }
}

impl Field for ScaleGroup {
    fn print(&self) -> String {
        spelled(SCALE_GROUPS, *self)
    }
    fn read(text: &str) -> Option<Self> {
        unspelled(SCALE_GROUPS, text)
    }
}

impl Field for Rule {
    fn print(&self) -> String {
        spelled(RULES, *self)
    }
    fn read(text: &str) -> Option<Self> {
        unspelled(RULES, text)
    }
}

impl Field for ConvPass {
    fn print(&self) -> String {
        spelled(PASSES, *self)
    }
    fn read(text: &str) -> Option<Self> {
        unspelled(PASSES, text)
    }
}

impl Field for Layout {
    fn print(&self) -> String {
        spelled(LAYOUTS, *self)
    }
    fn read(text: &str) -> Option<Self> {
        unspelled(LAYOUTS, text)
    }
}

impl Field for PoolName {
    fn print(&self) -> String {
        spelled(POOLS, *self)
    }
    fn read(text: &str) -> Option<Self> {
        unspelled(POOLS, text)
    }
}
