//! What a plan's tables say about a program's buffers and units.

use crate::graph::{Graph, Op};
use crate::units::{BufferId, Program};
use fp8c_kernels::program::{Kernel, ScratchFor};
use fp8c_runtime::plan::{Clip, Parameter, Plan, Role, Step, Tensor, TensorId};
use std::collections::HashMap;

/// The tensors that the trainer knows by the names of what they hold.
pub struct Homes {
    persistent: Vec<Option<TensorId>>,
    /// What it reads when a micro-batch is over: outputs, loss and gradients.
    pub results: Vec<(BufferId, TensorId)>,
}

impl Homes {
    /// Looks up every port, parameter and constant of a plan in its program.
    ///
    /// # Errors
    /// A sentence on what is missing, or is not what its name says.
    pub fn find(graph: &Graph, program: &Program, plan: &Plan) -> Result<Homes, String> {
        let mut homes = Homes { persistent: vec![None; program.buffers.len()], results: vec![] };
        let finder = Finder::new(graph, program, plan)?;
        for p in &plan.inputs {
            homes.settle(&finder, &Op::Input { name: p.name.clone() }, Some(p.tensor))?;
        }
        homes.settle(&finder, &Op::Control, plan.control)?;
        for p in &plan.parameters {
            homes.parameter(&finder, p)?;
        }
        let constants = (0u32..).zip(&program.buffers).filter(|(_, b)| b.persistent && b.role == Role::Constant);
        let constants: HashMap<&str, BufferId> = constants.map(|(i, b)| (b.name.as_str(), BufferId(i))).collect();
        for (i, t) in (0u32..).zip(&plan.tensors).filter(|(_, t)| t.role == Role::Constant) {
            let b = *constants.get(t.name.as_str()).ok_or_else(|| format!("the program has no constant {}", t.name))?;
            finder.fits(TensorId(i), b)?;
            homes.persistent[b.0 as usize] = Some(TensorId(i));
        }
        let missing = |b: &usize| program.buffers[*b].persistent && homes.persistent[*b].is_none();
        if let Some(b) = (0..program.buffers.len()).find(missing) {
            return Err(format!("{} has no tensor", program.buffers[b].name));
        }
        homes.results(&finder)?;
        Ok(homes)
    }

    /// The tensor of a buffer that outlives the step.
    pub fn of(&self, b: BufferId) -> Option<TensorId> {
        self.persistent[b.0 as usize]
    }

    /// Notes where the buffer of a source lies. A source that nothing reads has neither.
    fn settle(&mut self, finder: &Finder, op: &Op, tensor: Option<TensorId>) -> Result<(), String> {
        match (finder.source(op), tensor) {
            (Some(b), Some(id)) => {
                finder.fits(id, b)?;
                self.persistent[b.0 as usize] = Some(id);
                Ok(())
            }
            (None, None) => Ok(()),
            _ => Err(format!("{op:?} is in the plan or in the program alone")),
        }
    }

    fn parameter(&mut self, finder: &Finder, p: &Parameter) -> Result<(), String> {
        let known = finder.graph.parameters.iter().position(|known| known.name == p.name);
        let n = known.ok_or_else(|| format!("the model has no parameter {}", p.name))?;
        self.settle(finder, &Op::Parameter(n), Some(p.tensor))?;
        self.settle(finder, &Op::DecayOf(n), p.decay)?;
        let slots = p.state.iter().map(|&s| Some(s)).chain([None]);
        for (slot, id) in (0u32..).zip(slots) {
            match finder.states.get(&(n, slot)) {
                Some(op) => self.settle(finder, op, id)?,
                None if id.is_none() => {}
                None => return Err(format!("{} has more states than the program gives it", p.name)),
            }
        }
        let gradient = finder.program.gradients.iter().find(|(owner, _)| *owner == n).map(|(_, b)| *b);
        match (gradient, p.gradient) {
            (Some(b), Some(id)) => {
                finder.fits(id, b)?;
                if finder.program.buffers[b.0 as usize].persistent {
                    self.persistent[b.0 as usize] = Some(id);
                }
                // One that is applied as soon as it is there is nobody else's.
                if finder.plan.clip == Clip::Exact {
                    self.results.push((b, id));
                }
                Ok(())
            }
            (None, None) => Ok(()),
            _ => Err(format!("the gradient of {} is in the plan or in the program alone", p.name)),
        }
    }

    fn results(&mut self, finder: &Finder) -> Result<(), String> {
        let (program, plan) = (finder.program, finder.plan);
        let names = |p: &fp8c_runtime::plan::Port| p.name.clone();
        if !plan.outputs.iter().map(names).eq(program.outputs.iter().map(|o| o.0.clone())) || plan.loss.is_some() != program.loss.is_some()
        {
            return Err("the plan's outputs are not the program's".into());
        }
        let outputs = program.outputs.iter().map(|o| o.1).zip(plan.outputs.iter().map(|p| p.tensor));
        for (b, id) in outputs.chain(program.loss.zip(plan.loss)) {
            finder.fits(id, b)?;
            self.results.push((b, id));
        }
        Ok(())
    }
}

/// Finds the buffers of a program by what they hold.
struct Finder<'a> {
    graph: &'a Graph,
    program: &'a Program,
    plan: &'a Plan,
    sources: HashMap<String, BufferId>,
    /// The state of each parameter, by slot.
    states: HashMap<(usize, u32), Op>,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph, program: &'a Program, plan: &'a Plan) -> Result<Self, String> {
        let mut sources = HashMap::new();
        for (b, buffer) in (0u32..).zip(&program.buffers).filter(|(_, b)| b.persistent && b.role != Role::Constant) {
            let key = key(&graph.def(buffer.value).op);
            if sources.insert(key, BufferId(b)).is_some() {
                return Err(format!("{} has two buffers", buffer.name));
            }
        }
        let state = |n: &crate::graph::Node| match n.op {
            Op::State { parameter, slot, .. } => Some(((parameter, slot), n.op.clone())),
            _ => None,
        };
        Ok(Finder { graph, program, plan, sources, states: graph.nodes.iter().filter_map(state).collect() })
    }

    fn source(&self, op: &Op) -> Option<BufferId> {
        self.sources.get(&key(op)).copied()
    }

    /// Checks that a tensor is of a buffer's size and kind.
    fn fits(&self, id: TensorId, b: BufferId) -> Result<(), String> {
        fits(self.program, self.plan, id, b)
    }
}

/// What tells sources apart.
fn key(op: &Op) -> String {
    format!("{op:?}")
}

fn fits(program: &Program, plan: &Plan, id: TensorId, b: BufferId) -> Result<(), String> {
    let t = plan.tensors.get(id.0 as usize).ok_or_else(|| format!("tensor {} does not exist", id.0))?;
    let buffer = &program.buffers[b.0 as usize];
    let same = t.dtype == buffer.ty.dtype && t.bytes == buffer.bytes().0 && t.role == buffer.role;
    if same { Ok(()) } else { Err(format!("tensor {} is no place for {}", t.name, buffer.name)) }
}

/// Checks that each step runs the kernel of its unit, over tensors that are alive and of the size of the unit's buffers.
pub fn check(program: &Program, plan: &Plan, units: &[u32]) -> Result<(), String> {
    let mut scratch: HashMap<&Kernel, u64> = HashMap::new();
    let steps = plan.schedule.micro.iter().chain(&plan.schedule.update);
    for (at, (step, &u)) in steps.zip(units).enumerate() {
        let unit = program.unit(u);
        let kernel = plan.kernels.get(step.kernel as usize).map(|k| &k.kernel).filter(|k| **k == unit.kernel);
        let need = match plan.is_for_cpu() {
            true => *scratch.entry(&unit.kernel).or_insert_with(|| unit.kernel.scratch_bytes(ScratchFor::Cpu { threads: 1 })),
            false => 0,
        };
        let checked = match kernel {
            Some(_) if step.args.len() == unit.args.len() => {
                arguments(program, plan, at, step, &unit.args).and(alive_scratch(plan, at, step, need))
            }
            _ => Err("does not run its unit's kernel".into()),
        };
        checked.map_err(|reason| format!("step {at} ({}) {reason}", unit.site))?;
    }
    Ok(())
}

fn arguments(program: &Program, plan: &Plan, at: usize, step: &Step, buffers: &[BufferId]) -> Result<(), String> {
    let mut bound: HashMap<TensorId, BufferId> = HashMap::new();
    for (&id, &b) in step.args.iter().zip(buffers) {
        fits(program, plan, id, b)?;
        alive(plan.tensor(id), at)?;
        if bound.insert(id, b).is_some_and(|other| other != b) {
            return Err(format!("binds tensor {} twice", plan.tensor(id).name));
        }
    }
    Ok(())
}

fn alive(t: &Tensor, at: usize) -> Result<(), String> {
    match (t.first as usize..=t.last as usize).contains(&at) {
        true => Ok(()),
        false => Err(format!("uses {} outside its lifetime", t.name)),
    }
}

fn alive_scratch(plan: &Plan, at: usize, step: &Step, need: u64) -> Result<(), String> {
    let Some(id) = step.scratch else {
        return if need == 0 { Ok(()) } else { Err(format!("lacks {need} bytes of scratch memory")) };
    };
    let t = plan.tensors.get(id.0 as usize).ok_or_else(|| format!("tensor {} does not exist", id.0))?;
    match t.role == Role::Scratch && t.bytes >= need {
        true => alive(t, at),
        false => Err(format!("has scratch memory {} that does not do", t.name)),
    }
}
