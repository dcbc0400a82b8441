//! Everything about a plan that can be seen without running it.

use super::{Known, ensure, positions};
use crate::plan::{ALIGN, Clip, Control, Init, MAX_ACCUMULATION, Plan, Port, Purpose, Role, SCHEMA, Step, Tensor, TensorId, Tier};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Arg, Mode};
use std::collections::{HashMap, HashSet};

/// Most bytes of inputs of one training step: the trainer keeps them in host memory.
const MAX_BATCH_BYTES: u64 = 1 << 33;

pub(super) fn header(plan: &Plan) -> Result<(), String> {
    ensure(plan.schema == SCHEMA, || format!("the plan has schema {}, this runtime reads {SCHEMA}", plan.schema))?;
    ensure(plan.accumulation >= 1, || "the plan runs no micro-batch".into())?;
    ensure(plan.accumulation <= MAX_ACCUMULATION, || {
        format!("a step of {} micro-batches is too long, at most {MAX_ACCUMULATION} are run", plan.accumulation)
    })?;
    ensure(plan.arena_bytes <= plan.budget_bytes, || {
        format!("the arena of {} bytes exceeds the budget of {} bytes", plan.arena_bytes, plan.budget_bytes)
    })?;
    ensure(plan.tensors.len() < u32::MAX as usize, || "the plan has too many tensors".into())?;
    let steps = plan.schedule.micro.len() + plan.schedule.update.len();
    ensure(steps < u32::MAX as usize, || "the plan has too many steps".into())?;
    let training = plan.purpose == Purpose::Train;
    ensure(plan.loss.is_some() == training && plan.control.is_some() == training, || {
        "a training plan has a loss and a control block, any other has neither".into()
    })?;
    ensure(training || plan.schedule.update.is_empty(), || "a forward-only plan has an update".into())?;
    ensure(training || plan.accumulation == 1, || "a forward-only plan accumulates".into())?;
    ensure(plan.clip == Clip::Exact || plan.accumulation == 1, || "gradients that are accumulated are applied one by one".into())
}

pub(super) fn tensors(plan: &Plan) -> Result<(), String> {
    let steps = (plan.schedule.micro.len() + plan.schedule.update.len()) as u32;
    let end = steps.max(1) - 1;
    let mut constants = HashSet::new();
    let mut peak = 0u64;
    for t in &plan.tensors {
        ensure(t.tier == Tier::Device, || format!("tensor {} lies on a tier that this runtime does not have", t.name))?;
        ensure(t.offset % ALIGN == 0, || format!("tensor {} is not aligned", t.name))?;
        let size = t.shape.iter().try_fold(t.dtype.size(), |n, &d| n.checked_mul(d));
        ensure(size == Some(t.bytes), || format!("tensor {} has {} bytes, its shape needs another number", t.name, t.bytes))?;
        let top = t.offset.checked_add(t.bytes.max(1)).and_then(|b| b.checked_next_multiple_of(ALIGN));
        let top = top.filter(|&b| b <= plan.arena_bytes).ok_or_else(|| format!("tensor {} ends outside the arena", t.name))?;
        peak = peak.max(top);
        ensure(t.first <= t.last && t.last <= end, || format!("tensor {} lives from step {} to {} of {steps}", t.name, t.first, t.last))?;
        let persistent = matches!(t.role, Role::Parameter | Role::State | Role::Constant | Role::Control);
        ensure(!persistent || whole(t, end), || format!("tensor {} does not live as long as the schedule", t.name))?;
        ensure(t.role != Role::Constant || constants.insert(&t.name), || format!("two constants are named {}", t.name))?;
    }
    ensure(peak == plan.arena_bytes, || format!("the arena has {} bytes, its tensors need {peak}", plan.arena_bytes))
}

fn whole(t: &Tensor, end: u32) -> bool {
    t.first == 0 && t.last == end
}

/// The tensor of an index that may be out of range.
pub(super) fn tensor(plan: &Plan, id: TensorId) -> Result<&Tensor, String> {
    plan.tensors.get(id.0 as usize).ok_or_else(|| format!("tensor {} does not exist", id.0))
}

fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

pub(super) fn ports(plan: &Plan) -> Result<(), String> {
    let fits = |p: &Port, kind: &str| {
        let t = tensor(plan, p.tensor)?;
        let fits = t.dtype == p.dtype && elements(&t.shape) == elements(&p.shape);
        ensure(fits, || format!("{kind} {} differs from its tensor in dtype or shape", p.name))?;
        Ok::<_, String>(t)
    };
    let (mut names, mut places, mut batch) = (HashSet::new(), HashSet::new(), 0u64);
    for p in &plan.inputs {
        let t = fits(p, "input")?;
        ensure(t.role == Role::Input && t.first == 0, || format!("input {} has no place at the start of the schedule", p.name))?;
        ensure(names.insert(&p.name), || format!("two inputs are named {}", p.name))?;
        ensure(places.insert(p.tensor), || format!("input {} shares its tensor with another", p.name))?;
        let named = t.name == p.name || t.name.strip_prefix(p.name.as_str()).is_some_and(|rest| rest.starts_with('#'));
        ensure(named, || format!("input {} has the tensor of {}", p.name, t.name))?;
        batch = batch.saturating_add(t.bytes.saturating_mul(plan.accumulation.into()));
    }
    ensure(batch <= MAX_BATCH_BYTES, || format!("the inputs of a step take {batch} bytes, at most {MAX_BATCH_BYTES} are kept"))?;
    names.clear();
    for p in &plan.outputs {
        let t = fits(p, "output")?;
        ensure(outlives_micro(plan, t), || format!("output {} does not last until the end of a micro-batch", p.name))?;
        ensure(names.insert(&p.name), || format!("two outputs are named {}", p.name))?;
    }
    if let Some(loss) = plan.loss {
        let t = tensor(plan, loss)?;
        ensure(t.dtype == DType::F32 && t.bytes == 4, || "the loss is not an f32 scalar".into())?;
        ensure(outlives_micro(plan, t), || "the loss does not last until the end of a micro-batch".into())?;
    }
    if let Some(control) = plan.control {
        let t = tensor(plan, control)?;
        let fits = t.role == Role::Control && t.dtype == DType::F32 && t.bytes == 4 * Control::LEN as u64;
        ensure(fits, || format!("the control block is not {} f32 values", Control::LEN))?;
    }
    Ok(())
}

/// True for a tensor that the trainer may read when a micro-batch is over.
pub(super) fn outlives_micro(plan: &Plan, t: &Tensor) -> bool {
    t.last as usize + 1 >= plan.schedule.micro.len()
}

pub(super) fn parameters(plan: &Plan) -> Result<(), String> {
    let mut names = HashSet::new();
    for p in &plan.parameters {
        let fault = |what: &str| format!("parameter {} {what}", p.name);
        ensure(names.insert(&p.name), || fault("is listed twice"))?;
        let t = tensor(plan, p.tensor)?;
        let elements = p.inside_shape().and_then(|shape| elements(&shape));
        ensure(elements.is_some() && elements == self::elements(&t.shape), || fault("differs from its tensor in shape"))?;
        if let Some(g) = p.gradient {
            let g = tensor(plan, g)?;
            ensure(g.dtype.is_float() && self::elements(&g.shape) == elements, || fault("differs from its gradient in shape"))?;
            ensure(plan.clip == Clip::Previous || outlives_micro(plan, g), || fault("has a gradient that does not last until the update"))?;
        }
        for &s in &p.state {
            tensor(plan, s)?;
        }
        if let Some(d) = p.decay {
            let d = tensor(plan, d)?;
            let end = (plan.schedule.micro.len() + plan.schedule.update.len()).max(1) as u32 - 1;
            let fits = d.dtype == DType::F32 && d.bytes == 4 && whole(d, end);
            ensure(fits, || fault("has a decay multiplier that is not a lasting f32 scalar"))?;
        }
        ensure(recipe_holds(&p.init), || fault("has an initial value that is not finite"))?;
    }
    Ok(())
}

fn recipe_holds(init: &Init) -> bool {
    match init {
        Init::Normal { std, .. } => std.is_finite(),
        Init::Uniform { low, high, .. } => low.is_finite() && high.is_finite() && (high - low).is_finite(),
        Init::Stored { .. } | Init::File { .. } | Init::Zeros | Init::Ones => true,
    }
}

/// What the passes ask the plan's kernels for, each of which is sound.
pub(super) fn kernels(plan: &Plan) -> Result<Vec<Known>, String> {
    let mut names = HashSet::new();
    let on_cpu = plan.is_for_cpu();
    let known = plan.kernels.iter().map(|entry| {
        ensure(names.insert(&entry.name), || format!("two kernels are named {}", entry.name))?;
        entry.kernel.verify().map_err(|e| format!("kernel {}: {e}", entry.name))?;
        Ok(Known::new(&entry.kernel, on_cpu))
    });
    known.collect()
}

pub(super) fn steps(plan: &Plan, kernels: &[Known]) -> Result<(), String> {
    for (at, step, _) in positions(plan) {
        let kernel = kernels.get(step.kernel as usize);
        let kernel = kernel.ok_or_else(|| format!("step {at} runs kernel {}, which does not exist", step.kernel))?;
        bindings(plan, at, step, &kernel.args).map_err(|reason| format!("step {at} ({}): {reason}", step.site))?;
        scratch_memory(plan, at, step, kernel.scratch).map_err(|reason| format!("step {at} ({}): {reason}", step.site))?;
    }
    Ok(())
}

fn alive(t: &Tensor, at: usize) -> Result<(), String> {
    let inside = (t.first as usize..=t.last as usize).contains(&at);
    ensure(inside, || format!("tensor {} is used outside its lifetime", t.name))
}

fn bindings(plan: &Plan, at: usize, step: &Step, args: &[Arg]) -> Result<(), String> {
    ensure(step.args.len() == args.len(), || format!("{} tensors are bound to {} arguments", step.args.len(), args.len()))?;
    let mut bound: HashMap<TensorId, bool> = HashMap::new();
    for (n, (&id, arg)) in step.args.iter().zip(args).enumerate() {
        let t = tensor(plan, id)?;
        ensure(t.dtype == arg.dtype, || format!("argument {n} is {}, tensor {} is {}", arg.dtype, t.name, t.dtype))?;
        ensure(t.bytes >= arg.bytes(), || format!("argument {n} has {} bytes, tensor {} has {}", arg.bytes(), t.name, t.bytes))?;
        ensure(t.role != Role::Scratch, || format!("tensor {} is scratch memory and an argument", t.name))?;
        alive(t, at)?;
        let writes = arg.mode != Mode::Read;
        let alias = bound.insert(id, writes).is_some_and(|written| written || writes);
        ensure(!alias, || format!("tensor {} is written and bound twice", t.name))?;
    }
    Ok(())
}

fn scratch_memory(plan: &Plan, at: usize, step: &Step, need: u64) -> Result<(), String> {
    let Some(id) = step.scratch else {
        return ensure(need == 0, || format!("the kernel needs {need} bytes of scratch memory and has none"));
    };
    let t = tensor(plan, id)?;
    ensure(t.role == Role::Scratch, || format!("tensor {} is no scratch memory", t.name))?;
    ensure(t.bytes >= need, || format!("the kernel needs {need} bytes of scratch memory and has {}", t.bytes))?;
    alive(t, at)
}
