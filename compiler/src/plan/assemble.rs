//! A schedule and its offsets, written down as a plan.

use super::offsets::Packing;
use super::schedule::{Schedule, Slot, aligned};
use crate::graph::{Epoch, Graph, Init, Op, Parameter, SourceDType};
use crate::import::inputs::InputFacts;
use crate::quantity::{Bytes, Seconds};
use crate::units::{BufferId, Program};
use fp8c_kernels::DType;
use fp8c_kernels::program::Kernel;
use fp8c_runtime::plan::{self, KernelEntry, Plan, Role, Step, StepEpoch, Tensor, TensorId, Tier};
use std::collections::HashMap;

/// Tensors of optimizer state of a parameter, at most: codes and words of two moments.
const MOST_STATES: u32 = 4;

/// What a plan says beside its schedule.
pub struct Header {
    pub model: String,
    pub fingerprint: plan::Fingerprint,
    pub purpose: plan::Purpose,
    pub target: String,
    pub precision: String,
    pub budget: Bytes,
    pub accumulation: u32,
    pub clip: plan::Clip,
    pub optimizer: Option<String>,
    /// What import found out about the inputs.
    pub inputs: Vec<InputFacts>,
}

/// Bytes at the bottom of the arena that persistent buffers take.
pub fn persistent_bytes(program: &Program) -> Bytes {
    program.buffers.iter().filter(|b| b.persistent).map(|b| aligned(b.bytes())).sum()
}

/// Writes the plan. Persistent buffers lie at the bottom in the program's order, transients above them as packed.
pub fn assemble(
    graph: &Graph,
    program: &Program,
    schedule: &Schedule,
    packing: &Packing,
    unit_seconds: &[Seconds],
    header: Header,
) -> Plan {
    let mut a = Assembler { program, schedule, tensors: vec![], persistent: HashMap::new(), transient: vec![] };
    let bottom = a.place_persistent();
    a.place_transients(packing, bottom);
    let (kernels, kernel_of) = distinct_kernels(program, schedule);
    let steps: Vec<Step> = schedule.events.iter().map(|e| a.step(e, &kernel_of, unit_seconds)).collect();
    // The micro-batch ends where the first parameter is updated.
    let is_update = |e: &super::schedule::Event| matches!(program.unit(e.unit).kernel, Kernel::Update(_));
    let cut = schedule.events.iter().position(is_update).map_or(usize::MAX, |at| at).min(schedule.update_start as usize);
    // A gradient is its parameter's shape, whatever shape the last kernel gave its bytes.
    for (p, b) in &program.gradients {
        let id = a.final_tensor(*b);
        if let Some(t) = a.tensors.get_mut(id.0 as usize) {
            t.shape = graph.parameters[*p].ty.shape.clone();
        }
    }
    // Likewise an output's shape is the graph's.
    let shape_of = |name: &String| graph.outputs.iter().find(|o| o.name == *name).map(|o| graph.ty(o.value).shape.clone());
    let output = |name: &String, b: BufferId| plan::Port {
        name: name.clone(),
        dtype: program.buffers[b.0 as usize].ty.dtype,
        shape: shape_of(name).unwrap_or_else(|| program.buffers[b.0 as usize].ty.shape.clone()),
        tensor: a.final_tensor(b),
        bound: None,
        least: 0,
        ignore: None,
        labels: None,
    };
    let control = program.buffers.iter().position(|b| b.role == Role::Control).map(|b| a.final_tensor(BufferId(b as u32)));
    Plan {
        schema: plan::SCHEMA,
        model: header.model,
        fingerprint: header.fingerprint,
        purpose: header.purpose,
        target: header.target,
        precision: header.precision,
        budget_bytes: header.budget.0,
        arena_bytes: (bottom + packing.height).0,
        accumulation: header.accumulation,
        clip: header.clip,
        kernels,
        schedule: plan::Schedule { micro: steps[..cut].to_vec(), update: steps[cut..].to_vec() },
        parameters: parameters(graph, &a),
        inputs: inputs(graph, &a, &header.inputs),
        outputs: program.outputs.iter().map(|(name, b)| output(name, *b)).collect(),
        loss: program.loss.map(|b| a.final_tensor(b)),
        control,
        optimizer: header.optimizer,
        report: plan::Report::default(),
        tensors: a.tensors,
    }
}

struct Assembler<'a> {
    program: &'a Program,
    schedule: &'a Schedule,
    tensors: Vec<Tensor>,
    persistent: HashMap<BufferId, TensorId>,
    transient: Vec<TensorId>,
}

impl Assembler<'_> {
    fn push(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        TensorId(self.tensors.len() as u32 - 1)
    }

    fn place_persistent(&mut self) -> Bytes {
        let last = self.schedule.events.len().saturating_sub(1) as u32;
        let mut end = Bytes(0);
        for (i, b) in self.program.buffers.iter().enumerate().filter(|(_, b)| b.persistent) {
            let (dtype, shape, offset, bytes) = (b.ty.dtype, b.ty.shape.clone(), end.0, b.bytes().0);
            let tensor = Tensor { name: b.name.clone(), dtype, shape, role: b.role, tier: Tier::Device, offset, bytes, first: 0, last };
            let id = self.push(tensor);
            self.persistent.insert(BufferId(i as u32), id);
            end += aligned(b.bytes());
        }
        end
    }

    fn place_transients(&mut self, packing: &Packing, bottom: Bytes) {
        for (n, instance) in self.schedule.instances.iter().enumerate() {
            let (first, last, offset) = (instance.first, instance.last, (bottom + packing.offsets[n]).0);
            let tensor = match instance.buffer {
                Some(b) => {
                    let b = &self.program.buffers[b.0 as usize];
                    let name = if instance.recomputed { format!("{}@late", b.name) } else { b.name.clone() };
                    let (dtype, shape, bytes) = (b.ty.dtype, b.ty.shape.clone(), b.bytes().0);
                    Tensor { name, dtype, shape, role: b.role, tier: Tier::Device, offset, bytes, first, last }
                }
                None => {
                    let (name, shape) = (format!("scratch.{first}"), vec![instance.bytes.0]);
                    let (dtype, role, bytes) = (DType::Bool, Role::Scratch, instance.bytes.0);
                    Tensor { name, dtype, shape, role, tier: Tier::Device, offset, bytes, first, last }
                }
            };
            let id = self.push(tensor);
            self.transient.push(id);
        }
    }

    fn slot(&self, slot: &Slot) -> TensorId {
        match slot {
            Slot::Persistent(b) => self.persistent[b],
            Slot::Instance(i) => self.transient[*i as usize],
        }
    }

    /// The tensor that holds a buffer when the step ends: the persistent one, or its last instance.
    fn final_tensor(&self, b: BufferId) -> TensorId {
        let instances = self.schedule.instances.iter();
        let last = instances.enumerate().filter(|(_, i)| i.buffer == Some(b)).max_by_key(|(_, i)| i.last);
        match (self.persistent.get(&b), last) {
            (Some(&id), _) => id,
            (None, Some((n, _))) => self.transient[n],
            // A buffer that no launch touches does not outlive lowering.
            (None, None) => TensorId(u32::MAX),
        }
    }

    fn step(&self, event: &super::schedule::Event, kernel_of: &[u32], unit_seconds: &[Seconds]) -> Step {
        let unit = self.program.unit(event.unit);
        let epoch = match unit.epoch {
            _ if event.recompute => StepEpoch::Recompute,
            _ if matches!(unit.kernel, Kernel::Update(_)) => StepEpoch::Update,
            Epoch::Forward => StepEpoch::Forward,
            Epoch::Backward => StepEpoch::Backward,
            Epoch::Update => StepEpoch::Update,
        };
        Step {
            kernel: kernel_of[event.unit as usize],
            args: self.schedule.args(event).iter().map(|s| self.slot(s)).collect(),
            scratch: event.scratch.map(|i| self.transient[i as usize]),
            epoch,
            site: unit.site.to_string(),
            seconds: unit_seconds[event.unit as usize].0,
        }
    }

    fn persistent_of(&self, graph: &Graph, is: impl Fn(&Op) -> bool) -> Option<TensorId> {
        let node = graph.nodes.iter().find(|n| n.op.is_source() && is(&n.op))?;
        let buffer = self.program.buffers.iter().position(|b| b.persistent && b.value == node.results[0])?;
        self.persistent.get(&BufferId(buffer as u32)).copied()
    }
}

/// Kernels without repetition, named by family and number, and the entry of each unit that runs.
fn distinct_kernels(program: &Program, schedule: &Schedule) -> (Vec<KernelEntry>, Vec<u32>) {
    let mut seen: HashMap<&Kernel, u32> = HashMap::new();
    let mut entries: Vec<KernelEntry> = vec![];
    let mut kernel_of = vec![u32::MAX; program.units.len() + program.again.len()];
    for u in (0..program.units.len() as u32).chain(schedule.events.iter().map(|e| e.unit)) {
        let kernel = &program.unit(u).kernel;
        kernel_of[u as usize] = *seen.entry(kernel).or_insert_with(|| {
            let name = format!("{}_{}", kernel.family(), entries.len());
            entries.push(KernelEntry { name, kernel: kernel.clone(), launches: Default::default() });
            entries.len() as u32 - 1
        });
    }
    (entries, kernel_of)
}

/// Parameters that the plan holds; one that nothing reads is left out.
fn parameters(graph: &Graph, a: &Assembler) -> Vec<plan::Parameter> {
    let entry = |(p, parameter): (usize, &Parameter)| {
        let tensor = a.persistent_of(graph, |op| *op == Op::Parameter(p))?;
        let gradient = a.program.gradients.iter().find(|(owner, _)| *owner == p).map(|(_, b)| a.final_tensor(*b));
        let slot = |n: u32| a.persistent_of(graph, |op| matches!(op, Op::State { parameter, slot, .. } if *parameter == p && *slot == n));
        Some(plan::Parameter {
            name: parameter.name.clone(),
            shape: outside_shape(parameter),
            perm: parameter.outside_perm.clone(),
            trainable: parameter.trainable && gradient.is_some(),
            tensor,
            gradient,
            state: (0..MOST_STATES).map_while(slot).collect(),
            decay: a.persistent_of(graph, |op| *op == Op::DecayOf(p)),
            init: init(parameter, p),
        })
    };
    graph.parameters.iter().enumerate().filter_map(entry).collect()
}

/// PyTorch's shape of a parameter: the graph's shape, put back through the inverse of `outside_perm`.
fn outside_shape(parameter: &Parameter) -> Vec<u64> {
    let shape = &parameter.ty.shape;
    match &parameter.outside_perm {
        None => shape.clone(),
        Some(perm) => {
            let mut out = vec![0; shape.len()];
            perm.iter().enumerate().for_each(|(i, &p)| out[p] = shape[i]);
            out
        }
    }
}

fn init(parameter: &Parameter, stream: usize) -> plan::Init {
    let stream = stream as u64;
    match &parameter.init {
        Init::Data(_) => plan::Init::Stored { name: parameter.name.clone() },
        Init::File { path, offset, bytes, dtype } => plan::Init::File {
            path: path.to_string_lossy().into_owned(),
            offset: *offset,
            bytes: *bytes,
            dtype: match dtype {
                SourceDType::F32 => "f32",
                SourceDType::F16 => "f16",
                SourceDType::Bf16 => "bf16",
                SourceDType::F64 => "f64",
            }
            .into(),
            file_bytes: 0,
            sha256: String::new(),
        },
        Init::Normal { std } => plan::Init::Normal { std: *std, stream },
        Init::Uniform { low, high } => plan::Init::Uniform { low: *low, high: *high, stream },
        Init::Zeros => plan::Init::Zeros,
        Init::Ones => plan::Init::Ones,
    }
}

/// Ports of the graph's inputs, with what is known of their values.
fn inputs(graph: &Graph, a: &Assembler, facts: &[InputFacts]) -> Vec<plan::Port> {
    let port = |node: &crate::graph::Node| match &node.op {
        Op::Input { name } => {
            let ty = graph.ty(node.results[0]);
            let tensor = a.persistent_of(graph, |op| *op == node.op)?;
            let facts = facts.iter().find(|f| f.name == *name);
            let range = facts.and_then(|f| f.range);
            Some(plan::Port {
                name: name.clone(),
                dtype: ty.dtype,
                shape: ty.shape.clone(),
                tensor,
                bound: range.map(|r| r.bound),
                least: range.map_or(0, |r| r.least),
                ignore: range.and_then(|r| r.ignore),
                labels: facts.and_then(|f| f.labels),
            })
        }
        _ => None,
    };
    graph.nodes.iter().filter_map(port).collect()
}
