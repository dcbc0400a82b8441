//! Plans made by hand, and data for them.

use fp8c_kernels::DType;
use fp8c_kernels::program::*;
use fp8c_runtime::plan::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const BATCH: u64 = 2;
pub const WIDTH: u64 = 4;
pub const OUT: u64 = 3;

/// A row program under construction.
struct Rows(RowProgram);

impl Rows {
    fn new(space: &[u64], args: &[(u64, Mode)]) -> Self {
        let args = args.iter().map(|&(elements, mode)| Arg { dtype: DType::F32, elements, mode }).collect();
        Rows(RowProgram { space: space.to_vec(), row_dims: 1, args, body: vec![] })
    }
    fn push(&mut self, s: Stmt) -> Var {
        self.0.body.push(s);
        Var(self.0.body.len() as u32 - 1)
    }
    fn access(&self, offset: usize, strides: &[i64]) -> Access {
        let strides = if strides.is_empty() { vec![0; self.0.space.len()] } else { strides.to_vec() };
        Access { offset: offset as i64, strides, guards: vec![] }
    }
    fn load(&mut self, arg: u32, offset: usize, strides: &[i64]) -> Var {
        let access = self.access(offset, strides);
        self.push(Stmt::Load { arg, access, indexed: None })
    }
    fn store(&mut self, arg: u32, offset: usize, strides: &[i64], x: Var) {
        let access = self.access(offset, strides);
        self.push(Stmt::Store { arg, access, x });
    }
    fn constant(&mut self, x: f32) -> Var {
        self.push(Stmt::Const { kind: Kind::Float, value: Literal::float(x) })
    }
    fn binary(&mut self, op: Binary, x: Var, y: Var) -> Var {
        self.push(Stmt::Binary { op, x, y })
    }
    fn mul(&mut self, x: Var, y: Var) -> Var {
        self.binary(Binary::Mul, x, y)
    }
    fn sum(&mut self, x: Var) -> Var {
        self.push(Stmt::Reduce { op: Fold::Sum, x })
    }
    fn unary(&mut self, op: Unary, x: Var) -> Var {
        self.push(Stmt::Unary { op, x })
    }
    fn select(&mut self, c: Var, x: Var, y: Var) -> Var {
        self.push(Stmt::Select { c, x, y })
    }
}

/// error[b, k] = sum_d x[b, d] w[d, k] - t[b, k]
fn error_kernel() -> RowProgram {
    let args = [(BATCH * WIDTH, Mode::Read), (WIDTH * OUT, Mode::Read), (BATCH * OUT, Mode::Read), (BATCH * OUT, Mode::Write)];
    let mut r = Rows::new(&[BATCH, OUT, WIDTH], &args);
    let x = r.load(0, 0, &[WIDTH as i64, 0, 1]);
    let w = r.load(1, 0, &[0, 1, OUT as i64]);
    let t = r.load(2, 0, &[OUT as i64, 1, 0]);
    let product = r.mul(x, w);
    let prediction = r.sum(product);
    let error = r.binary(Binary::Sub, prediction, t);
    r.store(3, 0, &[OUT as i64, 1, 0], error);
    r.0
}

/// loss = mean(error^2)
fn loss_kernel() -> RowProgram {
    let mut r = Rows::new(&[BATCH * OUT], &[(BATCH * OUT, Mode::Read), (1, Mode::Write)]);
    let e = r.load(0, 0, &[1]);
    let square = r.mul(e, e);
    let sum = r.sum(square);
    let factor = r.constant(1.0 / (BATCH * OUT) as f32);
    let loss = r.mul(sum, factor);
    r.store(1, 0, &[], loss);
    r.0
}

/// gradient[d, k] += scale * 2 / n * sum_b error[b, k] x[b, d]
fn gradient_kernel() -> RowProgram {
    let args = [(BATCH * OUT, Mode::Read), (BATCH * WIDTH, Mode::Read), (Control::LEN as u64, Mode::Read), (WIDTH * OUT, Mode::Update)];
    let mut r = Rows::new(&[WIDTH, OUT, BATCH], &args);
    let e = r.load(0, 0, &[0, 1, OUT as i64]);
    let x = r.load(1, 0, &[1, 0, WIDTH as i64]);
    let scale = r.load(2, Control::LOSS_SCALE, &[]);
    let product = r.mul(e, x);
    let sum = r.sum(product);
    let factor = r.constant(2.0 / (BATCH * OUT) as f32);
    let g = r.mul(sum, factor);
    let g = r.mul(g, scale);
    let access = r.access(0, &[OUT as i64, 1, 0]);
    r.push(Stmt::Accumulate { arg: 3, access, x: g });
    r.0
}

/// The norm, whether it is finite, and the clipping multiplier, into the control block.
fn norm_kernel(accumulation: u32) -> RowProgram {
    let mut r = Rows::new(&[WIDTH * OUT], &[(WIDTH * OUT, Mode::Read), (Control::LEN as u64, Mode::Update)]);
    let g = r.load(0, 0, &[1]);
    let scale = r.load(1, Control::LOSS_SCALE, &[]);
    let clip = r.load(1, Control::CLIP, &[]);
    let square = r.mul(g, g);
    let sum = r.sum(square);
    let root = r.unary(Unary::Sqrt, sum);
    let parts = r.constant(accumulation as f32);
    let divisor = r.mul(scale, parts);
    let norm = r.binary(Binary::Div, root, divisor);
    let largest = r.constant(f32::MAX);
    let finite = r.binary(Binary::Le, norm, largest);
    let (one, zero) = (r.constant(1.0), r.constant(0.0));
    let flag = r.select(finite, one, zero);
    let ratio = r.binary(Binary::Div, clip, norm);
    let clipped = r.binary(Binary::Min, one, ratio);
    let multiplier = r.binary(Binary::Div, clipped, divisor);
    r.store(1, Control::GRAD_NORM, &[], norm);
    r.store(1, Control::FINITE, &[], flag);
    r.store(1, Control::GRAD_MULTIPLIER, &[], multiplier);
    r.0
}

/// AdamW on w, m and v, all untouched where the control block says so.
fn adamw_kernel() -> RowProgram {
    let n = WIDTH * OUT;
    let args =
        [(n, Mode::Update), (n, Mode::Read), (n, Mode::Update), (n, Mode::Update), (Control::LEN as u64, Mode::Read), (1, Mode::Read)];
    let mut r = Rows::new(&[n], &args);
    let [w, g, m, v] = [0, 1, 2, 3].map(|a| r.load(a, 0, &[1]));
    let c = |r: &mut Rows, i| r.load(4, i, &[]);
    let (lr, b1, b2, eps) =
        (c(&mut r, Control::LEARNING_RATE), c(&mut r, Control::BETA1), c(&mut r, Control::BETA2), c(&mut r, Control::EPS));
    let (decay, c1, c2) = (c(&mut r, Control::WEIGHT_DECAY), c(&mut r, Control::CORRECTION1), c(&mut r, Control::CORRECTION2));
    let (finite, multiplier) = (c(&mut r, Control::FINITE), c(&mut r, Control::GRAD_MULTIPLIER));
    let own = r.load(5, 0, &[]);
    let one = r.constant(1.0);
    let half = r.constant(0.5);
    let go = r.binary(Binary::Gt, finite, half);
    let g = r.mul(g, multiplier);
    let blend = |r: &mut Rows, beta, old, new| {
        let rest = r.binary(Binary::Sub, one, beta);
        let (a, b) = (r.mul(beta, old), r.mul(rest, new));
        r.binary(Binary::Add, a, b)
    };
    let m2 = blend(&mut r, b1, m, g);
    let square = r.mul(g, g);
    let v2 = blend(&mut r, b2, v, square);
    let mean = r.binary(Binary::Div, m2, c1);
    let root = r.unary(Unary::Sqrt, v2);
    let root = r.binary(Binary::Div, root, c2);
    let root = r.binary(Binary::Add, root, eps);
    let step = r.binary(Binary::Div, mean, root);
    let shrink = r.mul(decay, own);
    let shrink = r.mul(shrink, w);
    let step = r.binary(Binary::Add, step, shrink);
    let step = r.mul(step, lr);
    let w2 = r.binary(Binary::Sub, w, step);
    for (arg, new, old) in [(0, w2, w), (2, m2, m), (3, v2, v)] {
        let kept = r.select(go, new, old);
        r.store(arg, 0, &[1], kept);
    }
    r.0
}

fn tensor(name: &str, shape: &[u64], role: Role, first: u32, last: u32) -> Tensor {
    let bytes = shape.iter().product::<u64>() * 4;
    Tensor { name: name.into(), dtype: DType::F32, shape: shape.to_vec(), role, tier: Tier::Device, offset: 0, bytes, first, last }
}

/// Threads that scratch memory is laid out for.
const THREADS: usize = 2;

/// Gives each step the scratch memory that its kernel asks for.
fn add_scratch(plan: &mut Plan) {
    let Plan { schedule, kernels, tensors, .. } = plan;
    for (at, step) in schedule.micro.iter_mut().chain(&mut schedule.update).enumerate() {
        let bytes = kernels[step.kernel as usize].kernel.scratch_bytes(ScratchFor::Cpu { threads: THREADS });
        if bytes > 0 {
            step.scratch = Some(TensorId(tensors.len() as u32));
            let at = at as u32;
            tensors.push(Tensor { dtype: DType::Bool, bytes, ..tensor(&format!("scratch.{at}"), &[bytes], Role::Scratch, at, at) });
        }
    }
}

/// Gives each tensor a place of its own and the arena its size.
fn lay_out(plan: &mut Plan) {
    let mut at = 0;
    for t in &mut plan.tensors {
        t.offset = at;
        at = (at + t.bytes.max(1)).next_multiple_of(ALIGN);
    }
    (plan.arena_bytes, plan.budget_bytes) = (at, at);
}

fn step(kernel: u32, args: &[u32], epoch: StepEpoch) -> Step {
    Step { kernel, args: args.iter().map(|&a| TensorId(a)).collect(), scratch: None, epoch, site: format!("step{kernel}"), seconds: 0.0 }
}

fn empty(purpose: Purpose) -> Plan {
    Plan {
        schema: SCHEMA,
        model: "hand-made".into(),
        fingerprint: Fingerprint { model: "5e".repeat(32), compiler: "test".into(), target: "cpu".into() },
        purpose,
        target: "cpu".into(),
        precision: "f32".into(),
        budget_bytes: 0,
        arena_bytes: 0,
        accumulation: 1,
        clip: Clip::Exact,
        tensors: vec![],
        kernels: vec![],
        schedule: Schedule::default(),
        parameters: vec![],
        inputs: vec![],
        outputs: vec![],
        loss: None,
        control: None,
        optimizer: None,
        report: Report::default(),
    }
}

/// Linear regression by AdamW: x `[2, 4]`, t `[2, 3]`, weight `[3, 4]` outside and `[4, 3]` inside.
pub fn regression(accumulation: u32) -> Plan {
    let w = [WIDTH, OUT];
    let mut plan = Plan {
        accumulation,
        tensors: vec![
            tensor("x", &[BATCH, WIDTH], Role::Input, 0, 4),
            tensor("t", &[BATCH, OUT], Role::Input, 0, 4),
            tensor("w", &w, Role::Parameter, 0, 4),
            tensor("w.m", &w, Role::State, 0, 4),
            tensor("w.v", &w, Role::State, 0, 4),
            tensor("w.decay", &[], Role::Constant, 0, 4),
            tensor("control", &[Control::LEN as u64], Role::Control, 0, 4),
            tensor("w.grad", &w, Role::Gradient, 0, 4),
            tensor("error", &[BATCH, OUT], Role::Activation, 0, 2),
            tensor("loss", &[], Role::Output, 1, 4),
        ],
        loss: Some(TensorId(9)),
        control: Some(TensorId(6)),
        optimizer: Some("adamw".into()),
        ..empty(Purpose::Train)
    };
    let rows = [error_kernel(), loss_kernel(), gradient_kernel(), norm_kernel(accumulation), adamw_kernel()];
    let entry = |(i, k)| KernelEntry { name: format!("row_{i}"), kernel: Kernel::Row(k), launches: BTreeMap::new() };
    plan.kernels = rows.into_iter().enumerate().map(entry).collect();
    plan.schedule.micro =
        vec![step(0, &[0, 2, 1, 8], StepEpoch::Forward), step(1, &[8, 9], StepEpoch::Forward), step(2, &[8, 0, 6, 7], StepEpoch::Backward)];
    plan.schedule.update = vec![step(3, &[7, 6], StepEpoch::Update), step(4, &[2, 7, 3, 4, 6, 5], StepEpoch::Update)];
    plan.parameters = vec![Parameter {
        name: "layer.weight".into(),
        shape: vec![OUT, WIDTH],
        perm: Some(vec![1, 0]),
        trainable: true,
        tensor: TensorId(2),
        gradient: Some(TensorId(7)),
        state: vec![TensorId(3), TensorId(4)],
        decay: Some(TensorId(5)),
        init: Init::Normal { std: 0.5, stream: 0 },
    }];
    let port = |name: &str, tensor, shape: &[u64]| Port {
        name: name.into(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        tensor: TensorId(tensor),
        bound: None,
        least: 0,
        ignore: None,
        labels: None,
    };
    plan.inputs = vec![port("x", 0, &[BATCH, WIDTH]), port("t", 1, &[BATCH, OUT])];
    plan.outputs = vec![port("loss", 9, &[])];
    add_scratch(&mut plan);
    lay_out(&mut plan);
    plan
}

/// A plan that computes nothing, with integer inputs of a language model.
pub fn language_model(batch: u64, length: u64, vocabulary: i64, extra: &[&str]) -> Plan {
    let mut plan = empty(Purpose::Infer);
    for (i, name) in ["input_ids", "labels"].iter().chain(extra).enumerate() {
        let shape = vec![batch, length];
        plan.tensors.push(Tensor { dtype: DType::I64, bytes: batch * length * 8, ..tensor(name, &shape, Role::Input, 0, 0) });
        let (bound, ignore) = (Some(vocabulary), Some(-100));
        let labels = (*name == "labels").then_some(Labels::Next);
        plan.inputs.push(Port {
            name: name.to_string(),
            dtype: DType::I64,
            shape,
            tensor: TensorId(i as u32),
            bound,
            least: 0,
            ignore,
            labels,
        });
    }
    lay_out(&mut plan);
    plan
}

/// Writes a plan without stored tensors.
pub fn write(plan: &Plan, path: &Path) {
    PlanFile::write(path, &Contents { plan, ptx: &BTreeMap::new(), weights: &[], constants: &[] }).unwrap();
}

pub fn opened(plan: &Plan, folder: &Path) -> PlanFile {
    let path = folder.join("test.plan");
    write(plan, &path);
    PlanFile::open(path).unwrap()
}

/// Writes a numpy file, version 1.0.
pub fn npy(path: &Path, descr: &str, shape: &[u64], data: &[u8]) {
    let shape: Vec<String> = shape.iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.concat());
    header += &" ".repeat(63 - (10 + header.len()) % 64);
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

pub fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Data of a linear teacher for [`regression`], as `--data` specifications.
pub fn teacher(folder: &Path, samples: u64) -> Vec<String> {
    let x: Vec<f32> = (0..samples * WIDTH).map(|i| ((i * 37 + 11) % 17) as f32 / 8.0 - 1.0).collect();
    let weight = |k: u64, d: u64| ((k * 5 + d * 3) % 7) as f32 / 3.0 - 1.0;
    let row = |s: u64, k: u64| (0..WIDTH).map(|d| x[(s * WIDTH + d) as usize] * weight(k, d)).sum::<f32>();
    let t: Vec<f32> = (0..samples).flat_map(|s| (0..OUT).map(move |k| (s, k))).map(|(s, k)| row(s, k)).collect();
    let file = |name: &str| -> PathBuf { folder.join(format!("{name}.npy")) };
    npy(&file("x"), "<f4", &[samples, WIDTH], &f32_bytes(x));
    npy(&file("t"), "<f4", &[samples, OUT], &f32_bytes(t));
    ["x", "t"].iter().map(|n| format!("{n}={}", file(n).display())).collect()
}
