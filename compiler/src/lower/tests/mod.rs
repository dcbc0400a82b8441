//! Lowered graphs, executed on the CPU, against the graph interpreter.

mod composites;
mod ops;
mod random;
mod training;
mod units;

use super::*;
use crate::graph::eval::{Rounding, Tensor, run};
use crate::graph::*;
use fp8c_kernels::DType;
use fp8c_kernels::cpu;
use fp8c_kernels::program::{Binary, Fold, Unary};
use std::sync::Arc;

/// A graph under construction, with the values of its sources.
struct Case {
    graph: Graph,
    sources: Vec<(ValueId, Tensor)>,
    random: u64,
}

impl Case {
    fn new() -> Self {
        Case { graph: Graph::default(), sources: vec![], random: 7 }
    }

    /// A number in [0, 1), from a linear congruential generator.
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 40) as f64 / (1u64 << 24) as f64
    }

    /// An input of numbers between -1 and 1.
    fn input(&mut self, dtype: DType, shape: &[u64]) -> ValueId {
        let n = shape.iter().product::<u64>();
        let data = (0..n).map(|_| 2.0 * self.uniform() - 1.0).map(|x| rounded(x, dtype)).collect();
        self.source(TensorType::new(dtype, shape), Tensor::float(shape, data))
    }

    /// An input of integers in `[0, bound)`.
    fn indices(&mut self, shape: &[u64], bound: u64) -> ValueId {
        let n = shape.iter().product::<u64>();
        let data = (0..n).map(|_| (self.uniform() * bound as f64) as i64).collect();
        self.source(TensorType::new(DType::I64, shape), Tensor::int(shape, data))
    }

    fn source(&mut self, ty: TensorType, value: Tensor) -> ValueId {
        let name = format!("x{}", self.sources.len());
        let site: Arc<str> = name.as_str().into();
        let v = self.graph.add_source(Op::Input { name }, ty, &site);
        self.sources.push((v, value));
        v
    }

    /// A trainable parameter of numbers between -1 and 1.
    fn parameter(&mut self, shape: &[u64]) -> ValueId {
        let index = self.graph.parameters.len();
        let (ty, name) = (TensorType::new(DType::F32, shape), format!("p{index}"));
        let data = (0..ty.elements()).map(|_| rounded(2.0 * self.uniform() - 1.0, DType::F32)).collect();
        let site: Arc<str> = name.as_str().into();
        let init = Init::Zeros;
        self.graph.parameters.push(Parameter { source: name.clone(), name, trainable: true, outside_perm: None, init, ty: ty.clone() });
        let v = self.graph.add_source(Op::Parameter(index), ty, &site);
        self.sources.push((v, Tensor::float(shape, data)));
        v
    }

    fn constant(&mut self, data: ConstData) -> ValueId {
        let ty = data.ty.clone();
        self.graph.add_source(Op::Constant(Arc::new(data)), ty, &"constant".into())
    }

    fn all(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId> {
        let site = format!("n{}", self.graph.nodes.len());
        self.graph.add_forward(op, inputs, &site.as_str().into()).unwrap()
    }

    fn one(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.all(op, inputs)[0]
    }

    fn unary(&mut self, op: Unary, x: ValueId) -> ValueId {
        let dtype = self.graph.ty(x).dtype;
        self.one(Op::Map(Expr::unary(op), dtype), &[x])
    }

    fn binary(&mut self, op: Binary, x: ValueId, y: ValueId) -> ValueId {
        let dtype = self.graph.ty(x).dtype;
        self.one(Op::Map(Expr::binary(op), dtype), &[x, y])
    }

    fn reduce(&mut self, op: Fold, axes: &[usize], x: ValueId) -> ValueId {
        let dtype = self.graph.ty(x).dtype;
        self.one(Op::Reduce { op, axes: axes.to_vec(), dtype }, &[x])
    }

    fn transpose(&mut self, perm: &[usize], x: ValueId) -> ValueId {
        self.one(Op::Transpose(perm.to_vec()), &[x])
    }

    fn reshape(&mut self, shape: &[u64], x: ValueId) -> ValueId {
        self.one(Op::Reshape(shape.to_vec()), &[x])
    }

    fn matmul(&mut self, trans_a: bool, trans_b: bool, x: ValueId, y: ValueId) -> ValueId {
        let dtype = self.graph.ty(x).dtype;
        self.one(Op::Matmul { trans_a, trans_b, dtype }, &[x, y])
    }

    fn output(&mut self, v: ValueId) {
        let name = format!("y{}", self.graph.outputs.len());
        self.graph.outputs.push(Output { name, value: v });
    }

    /// Makes a mean of squares the loss.
    fn mean_square(&mut self, y: ValueId) {
        let shape = self.graph.ty(y).shape.clone();
        let wide = self.one(Op::Map(Expr::identity(), DType::F32), &[y]);
        let squares = self.binary(Binary::Mul, wide, wide);
        let axes: Vec<usize> = (0..shape.len()).collect();
        let sum = self.reduce(Fold::Sum, &axes, squares);
        let n = shape.iter().product::<u64>() as f32;
        let mean = self.one(Op::Map(Expr::with_constant(Binary::Div, n), DType::F32), &[sum]);
        let loss = self.reshape(&[], mean);
        self.graph.loss = Some(loss);
    }

    /// The interpreter's value of every value of the graph.
    fn expected(&self, graph: &Graph) -> Vec<Tensor> {
        let sources = |node: &Node, ty: &TensorType| Some(self.source_value(graph, node, ty));
        run(graph, &sources, Rounding::Stored).unwrap()
    }

    fn source_value(&self, graph: &Graph, node: &Node, ty: &TensorType) -> Tensor {
        let named = |(v, t): &(ValueId, Tensor)| (self.graph.def(*v).op == node.op).then(|| t.clone());
        match &node.op {
            Op::Constant(data) => Tensor::from_const(data),
            Op::Control => control(),
            Op::DecayOf(p) => Tensor::float([1], vec![if *p % 2 == 0 { 1.0 } else { 0.0 }]),
            Op::State { slot, parameter, .. } => {
                // Second moments are not negative.
                let sign = |i: usize| if *slot == 0 && i % 2 == 1 { -1.0 } else { 1.0 };
                let n = graph.parameters[*parameter].ty.elements() as usize;
                Tensor::float(ty.shape.clone(), (0..n).map(|i| sign(i) * ((i % 8) as f64) / 256.0).collect())
            }
            _ => self.sources.iter().find_map(named).unwrap(),
        }
    }

    /// Checks that the graph, lowered with and without fusion, computes what the interpreter does, and the same bits both times.
    fn check(&self) {
        self.check_graph(&self.graph, true);
    }

    /// As [`Case::check`]; `exact` asks for the same bits with and without fusion.
    fn check_graph(&self, graph: &Graph, exact: bool) {
        let expected = self.expected(graph);
        let runs = [true, false].map(|fuse| {
            let program = lower(graph, Options { fuse, ..Options::default() }).unwrap();
            let mut machine = Machine::new(self, graph, &program);
            let update = program.units.iter().position(|u| u.epoch == Epoch::Update).unwrap_or(program.units.len());
            machine.launch(&program.units[..update]);
            machine.make_again(&program);
            machine.launch(&program.units[update..]);
            machine.compare(graph, &program, &expected);
            machine.results(graph, &program)
        });
        if exact {
            assert_eq!(runs[0], runs[1], "fusion changes bits");
        }
    }
}

fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => half::bf16::from_f32(x as f32).to_f64(),
        _ => x as f32 as f64,
    }
}

fn control() -> Tensor {
    use fp8c_runtime::plan::Control;
    let mut c = vec![0.0; Control::LEN];
    let set = [
        (Control::LEARNING_RATE, 0.125),
        (Control::BETA1, 0.875),
        (Control::BETA2, 0.9375),
        (Control::EPS, 0.0009765625),
        (Control::WEIGHT_DECAY, 0.25),
        (Control::CORRECTION1, 0.5),
        (Control::CORRECTION2, 0.5),
        (Control::LOSS_SCALE, 4.0),
        (Control::CLIP, 0.5),
    ];
    set.into_iter().for_each(|(at, x)| c[at] = x);
    Tensor::float([Control::LEN as u64], c)
}

/// Memory aligned as kernels want it.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

/// Buffers of a program in host memory.
struct Machine {
    buffers: Vec<Vec<Line>>,
}

fn lines(bytes: u64) -> Vec<Line> {
    // Neither a number nor a valid index: what is read before it is written shows.
    vec![Line([0xff; 64]); (bytes as usize).div_ceil(64).max(1)]
}

impl Machine {
    fn new(case: &Case, graph: &Graph, program: &Program) -> Self {
        let mut machine = Machine { buffers: program.buffers.iter().map(|b| lines(b.ty.bytes())).collect() };
        for (i, b) in program.buffers.iter().enumerate().filter(|(_, b)| b.persistent) {
            let value = case.source_value(graph, graph.def(b.value), &b.ty).to_const(&b.ty).unwrap();
            machine.bytes(i)[..value.bytes.len()].copy_from_slice(&value.bytes);
        }
        machine
    }

    fn bytes(&mut self, i: usize) -> &mut [u8] {
        let lines = &mut self.buffers[i];
        // SAFETY: a line is 64 bytes without padding, and any bytes make one.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
    }

    fn run(&mut self, program: &Program) {
        self.launch(&program.units);
    }

    /// Checks that every other way to make a buffer gives the bits that are there.
    fn make_again(&mut self, program: &Program) {
        for unit in &program.again {
            let at = unit.kernel.args().iter().position(|a| a.mode != fp8c_kernels::program::Mode::Read).unwrap();
            let b = unit.args[at].0 as usize;
            let before = self.bytes(b).to_vec();
            self.launch(std::slice::from_ref(unit));
            assert!(self.bytes(b) == before, "{} comes out differently", program.buffers[b].name);
        }
    }

    fn launch(&mut self, units: &[crate::units::Unit]) {
        for unit in units {
            let mut scratch = lines(cpu::scratch_bytes(&unit.kernel, rayon::current_num_threads()));
            let scratch = cpu::Buffer { ptr: scratch.as_mut_ptr().cast(), bytes: scratch.len() * 64 };
            let bind = |b: &crate::units::BufferId| {
                let bytes = self.bytes(b.0 as usize);
                cpu::Buffer { ptr: bytes.as_mut_ptr(), bytes: bytes.len() }
            };
            let args: Vec<cpu::Buffer> = unit.args.iter().map(bind).collect();
            // SAFETY: the program's buffers are apart and as long as its arguments; `lower` has verified the kernels.
            unsafe { cpu::launch(&unit.kernel, &args, scratch) }.unwrap();
        }
    }

    fn read(&mut self, program: &Program, b: crate::units::BufferId) -> ConstData {
        let ty = program.buffers[b.0 as usize].ty.clone();
        let bytes = self.bytes(b.0 as usize)[..ty.bytes() as usize].to_vec();
        ConstData { ty, bytes }
    }

    /// The buffers of outputs, loss, gradients and states, with the values that they should hold.
    fn claims(graph: &Graph, program: &Program) -> Vec<(ValueId, crate::units::BufferId)> {
        let mut claims: Vec<_> = graph.outputs.iter().zip(&program.outputs).map(|(o, b)| (o.value, b.1)).collect();
        claims.extend(graph.loss.zip(program.loss));
        claims.extend(graph.gradients.iter().zip(&program.gradients).map(|(g, b)| (g.value, b.1)));
        for node in &graph.nodes {
            for (&v, alias) in node.results.iter().zip(node.op.aliases()) {
                let replaced = alias.map(|i| node.inputs[i]);
                let buffer = program.buffers.iter().position(|b| Some(b.value) == replaced && b.persistent);
                claims.extend(buffer.map(|b| (v, crate::units::BufferId(b as u32))));
            }
        }
        claims
    }

    fn compare(&mut self, graph: &Graph, program: &Program, expected: &[Tensor]) {
        for (v, b) in Self::claims(graph, program) {
            let have = Tensor::from_const(&self.read(program, b));
            let (name, dtype) = (&program.buffers[b.0 as usize].name, graph.ty(v).dtype);
            close(name, dtype, &have, &expected[v.index()]);
        }
    }

    fn results(&mut self, graph: &Graph, program: &Program) -> Vec<Vec<u8>> {
        Self::claims(graph, program).into_iter().map(|(_, b)| self.read(program, b).bytes).collect()
    }
}

/// Asserts that two tensors agree to the rounding of a dtype, relative to the largest element.
fn close(name: &str, dtype: DType, have: &Tensor, want: &Tensor) {
    if !dtype.is_float() {
        assert_eq!(have.ints().unwrap(), want.ints().unwrap(), "{name}");
        return;
    }
    let (have, want) = (have.floats().unwrap(), want.floats().unwrap());
    assert_eq!(have.len(), want.len(), "{name}");
    let largest = want.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    let slack = largest * if dtype == DType::F32 { 2e-5 } else { 2e-2 } + 1e-12;
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        let fine = (h - w).abs() <= slack || h == w || (h.is_nan() && w.is_nan());
        assert!(fine, "{name}[{i}] is {h}, should be {w}");
    }
}
