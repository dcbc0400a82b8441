//! Changes of one field of a plan, chosen by the bytes of an input.

use crate::settle::{for_each_id, settle, size};
use fp8c_kernels::DType;
use fp8c_runtime::plan::{ALIGN, Plan, Role, Step, TensorId};
use serde_json::Value;

/// The bytes of an input, as choices.
pub struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Choices(data.iter())
    }

    fn byte(&mut self) -> usize {
        self.0.next().map_or(0, |&b| usize::from(b))
    }

    /// A number below `n`; 0 where there is none.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = self.byte() | self.byte() << 8;
        wide % n.max(1)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

const ROLES: [Role; 9] = [
    Role::Input,
    Role::Parameter,
    Role::State,
    Role::Gradient,
    Role::Constant,
    Role::Control,
    Role::Activation,
    Role::Output,
    Role::Scratch,
];

const DTYPES: [DType; 6] = [DType::F32, DType::Bf16, DType::E4m3, DType::I64, DType::I32, DType::Bool];

/// Changes one thing, and most often makes the rest fit.
pub fn bend(plan: &mut Plan, c: &mut Choices) {
    if plan.tensors.is_empty() || plan.schedule.micro.is_empty() || plan.kernels.is_empty() {
        return;
    }
    match c.below(12) {
        0 => place(plan, c),
        1 => lifetime(plan, c),
        2 => tensor(plan, c),
        3..=5 => binding(plan, c),
        6..=7 => order(plan, c),
        8 => tables(plan, c),
        9 => one_for_another(plan, c),
        _ => kernel(plan, c),
    }
    let in_range = |plan: &mut Plan| {
        let (tensors, mut fine) = (plan.tensors.len() as u32, true);
        for_each_id(plan, |id| fine &= id.0 < tensors);
        fine && plan.kernels.len() as u32 > plan.schedule.micro.iter().chain(&plan.schedule.update).map(|s| s.kernel).max().unwrap_or(0)
    };
    match c.below(4) {
        0 => {}
        1 => size(plan),
        _ if in_range(plan) => settle(plan),
        _ => size(plan),
    }
}

fn any(plan: &Plan, c: &mut Choices) -> usize {
    c.below(plan.tensors.len())
}

fn steps(plan: &Plan) -> usize {
    plan.schedule.micro.len() + plan.schedule.update.len()
}

fn step_mut(plan: &mut Plan, at: usize) -> &mut Step {
    let micro = plan.schedule.micro.len();
    if at < micro { &mut plan.schedule.micro[at] } else { &mut plan.schedule.update[at - micro] }
}

fn place(plan: &mut Plan, c: &mut Choices) {
    let (t, other) = (any(plan, c), any(plan, c));
    let there = plan.tensors[other].offset;
    let (below, above) =
        (there.saturating_sub(ALIGN), there.wrapping_add(plan.tensors[other].bytes.checked_next_multiple_of(ALIGN).unwrap_or(0)));
    plan.tensors[t].offset =
        c.of(&[there, below, above, there.wrapping_add(ALIGN), there.wrapping_add(4), plan.arena_bytes, 0, u64::MAX - 255]);
}

fn lifetime(plan: &mut Plan, c: &mut Choices) {
    let (t, at) = (any(plan, c), c.below(steps(plan)) as u32);
    match c.below(4) {
        0 => plan.tensors[t].first = at,
        1 => plan.tensors[t].last = at,
        2 => (plan.tensors[t].first, plan.tensors[t].last) = (0, steps(plan) as u32 - 1),
        _ => plan.tensors[t].last = plan.tensors[t].last.saturating_sub(1),
    }
}

fn tensor(plan: &mut Plan, c: &mut Choices) {
    let t = any(plan, c);
    let tensor = &mut plan.tensors[t];
    match c.below(3) {
        0 => tensor.role = c.of(&ROLES),
        1 => tensor.dtype = c.of(&DTYPES),
        _ => {
            let n = tensor.bytes / tensor.dtype.size();
            tensor.shape = vec![c.of(&[n, n + 1, n.saturating_sub(1), 2 * n, n / 2, 1, 0, 1 << 20])];
        }
    }
    tensor.bytes = tensor.shape.iter().fold(tensor.dtype.size(), |n, &d| n.saturating_mul(d));
}

/// A tensor of the same kind as another, most often.
fn like(plan: &Plan, c: &mut Choices, id: TensorId) -> TensorId {
    let Some(t) = plan.tensors.get(id.0 as usize) else { return TensorId(0) };
    let fits = |o: &fp8c_runtime::plan::Tensor| o.dtype == t.dtype && o.bytes >= t.bytes;
    let alike: Vec<u32> = (0..plan.tensors.len() as u32).filter(|&i| fits(&plan.tensors[i as usize])).collect();
    match c.below(8) {
        0 => TensorId(any(plan, c) as u32),
        _ => TensorId(c.of(&alike)),
    }
}

fn binding(plan: &mut Plan, c: &mut Choices) {
    let at = c.below(steps(plan));
    let step = step_mut(plan, at).clone();
    match c.below(6) {
        0 => step_mut(plan, at).kernel = c.below(plan.kernels.len()) as u32,
        1 => {
            let scratch: Vec<u32> = (0..plan.tensors.len() as u32).filter(|&i| plan.tensors[i as usize].role == Role::Scratch).collect();
            step_mut(plan, at).scratch = match c.below(3) {
                0 => None,
                1 if !scratch.is_empty() => Some(TensorId(c.of(&scratch))),
                _ => Some(TensorId(any(plan, c) as u32)),
            };
        }
        _ if step.args.is_empty() => {}
        _ => {
            let n = c.below(step.args.len());
            let id = like(plan, c, step.args[n]);
            step_mut(plan, at).args[n] = id;
        }
    }
}

fn order(plan: &mut Plan, c: &mut Choices) {
    let (a, b) = (c.below(steps(plan)), c.below(steps(plan)));
    let step = step_mut(plan, a).clone();
    let micro = plan.schedule.micro.len();
    let take = |plan: &mut Plan| if a < micro { plan.schedule.micro.remove(a) } else { plan.schedule.update.remove(a - micro) };
    match c.below(5) {
        0 => {
            let next = if a + 1 == steps(plan) { a } else { a + 1 };
            let other = std::mem::replace(step_mut(plan, next), step);
            *step_mut(plan, a) = other;
        }
        1 => {
            let other = std::mem::replace(step_mut(plan, b), step);
            *step_mut(plan, a) = other;
        }
        2 => drop(take(plan)),
        3 if b < micro => plan.schedule.micro.insert(b, step),
        3 => plan.schedule.update.insert(b - micro, step),
        _ => {
            let moved = take(plan);
            let at = b.min(plan.schedule.micro.len());
            plan.schedule.micro.insert(at, moved);
        }
    }
}

fn tables(plan: &mut Plan, c: &mut Choices) {
    let other = TensorId(any(plan, c) as u32);
    let p = c.below(plan.parameters.len());
    match c.below(10) {
        0 => plan.accumulation = c.of(&[0, 1, 2, 3, 1 << 16, 1 << 31, u32::MAX]),
        1 => plan.loss = Some(other),
        2 => plan.control = Some(other),
        3 => plan.target = c.of(&["cpu", "sm_90a", ""]).into(),
        4 if !plan.inputs.is_empty() => {
            let i = c.below(plan.inputs.len());
            plan.inputs[i].tensor = like(plan, c, plan.inputs[i].tensor);
        }
        5 if !plan.outputs.is_empty() => {
            let i = c.below(plan.outputs.len());
            plan.outputs[i].tensor = like(plan, c, plan.outputs[i].tensor);
        }
        _ if plan.parameters.is_empty() => {}
        6 => drop(plan.parameters.remove(p)),
        7 => plan.parameters[p].gradient = [None, Some(other), Some(plan.parameters[p].tensor)][c.below(3)],
        8 => plan.parameters[p].tensor = like(plan, c, plan.parameters[p].tensor),
        _ => {
            let state = plan.parameters[p].state.clone();
            plan.parameters[p].state = c.of(&[&state[..0], &state[..], &[other]]).to_vec();
            plan.parameters[p].trainable = c.below(2) == 0;
        }
    }
}

/// All that names one tensor names another, and is there as long.
fn one_for_another(plan: &mut Plan, c: &mut Choices) {
    let from = TensorId(any(plan, c) as u32);
    let to = like(plan, c, from);
    for_each_id(plan, |id| {
        if *id == from {
            *id = to;
        }
    });
}

/// Another number, format or mode in a kernel.
fn kernel(plan: &mut Plan, c: &mut Choices) {
    let k = c.below(plan.kernels.len());
    let Ok(mut json) = serde_json::to_value(&plan.kernels[k].kernel) else { return };
    let mut found = vec![];
    leaves(&json, &mut String::new(), &mut found);
    let (at, from) = (c.below(found.len()), c.below(found.len()));
    let taken = json.pointer(&found[from]).cloned();
    let Some(leaf) = json.pointer_mut(&found[at]) else { return };
    let changed = match (leaf.as_i64(), leaf.as_str(), taken) {
        (Some(n), ..) => match c.below(9) {
            0 => Value::from(0),
            1 => Value::from(1),
            2 => Value::from(n.wrapping_add(1)),
            3 => Value::from(n.wrapping_sub(1)),
            4 => Value::from(n.wrapping_mul(2)),
            5 => Value::from(n / 2),
            6 => Value::from(-n),
            7 => Value::from(c.of(&[1i64 << 20, 1 << 40, i64::MAX, i64::MIN, -1])),
            _ => taken_number(&plan.kernels[k].kernel, c).unwrap_or(Value::from(2)),
        },
        (_, Some("read" | "write" | "update"), _) => Value::from(c.of(&["read", "write", "update"])),
        (_, Some(_), Some(other)) => other,
        _ => Value::from(c.below(2) == 0),
    };
    *leaf = changed;
    if let Ok(kernel) = serde_json::from_value(json) {
        plan.kernels[k].kernel = kernel;
    }
}

/// A number that stands elsewhere in the kernel.
fn taken_number(kernel: &fp8c_kernels::program::Kernel, c: &mut Choices) -> Option<Value> {
    let json = serde_json::to_value(kernel).ok()?;
    let mut found = vec![];
    leaves(&json, &mut String::new(), &mut found);
    let numbers: Vec<&String> = found.iter().filter(|p| json.pointer(p).is_some_and(Value::is_number)).collect();
    json.pointer(numbers.get(c.below(numbers.len()))?).cloned()
}

/// Pointers to everything in a document that is neither list nor object.
fn leaves(json: &Value, at: &mut String, out: &mut Vec<String>) {
    let mut inside = |key: &str, value: &Value| {
        let length = at.len();
        at.push('/');
        at.push_str(key);
        leaves(value, at, out);
        at.truncate(length);
    };
    match json {
        Value::Object(map) => map.iter().for_each(|(k, v)| inside(k, v)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| inside(&i.to_string(), v)),
        _ => out.push(at.clone()),
    }
}
