//! Plans as hostile data.

use crate::fixtures::*;
use fp8c_kernels::program::{Access, Arg, Guard, Kernel, Kind, Literal, RowProgram, Stmt, Var};
use fp8c_runtime::plan::*;
use proptest::prelude::*;
use serde_json::Value;
use std::sync::OnceLock;

fn refused(change: impl FnOnce(&mut Plan)) -> String {
    let mut plan = regression(2);
    verify(&plan).expect("the plan is sound before the change");
    change(&mut plan);
    verify(&plan).expect_err("the change should be refused")
}

#[test]
fn a_sound_plan_verifies() {
    verify(&regression(1)).unwrap();
    verify(&regression(4)).unwrap();
    verify(&language_model(2, 8, 100, &[])).unwrap();
}

#[test]
fn indices_out_of_range_are_refused() {
    assert!(refused(|p| p.schedule.micro[0].kernel = 9).contains("kernel 9"));
    assert!(refused(|p| p.schedule.micro[0].args[1] = TensorId(77)).contains("tensor 77"));
    assert!(refused(|p| p.loss = Some(TensorId(1000))).contains("tensor 1000"));
    assert!(refused(|p| p.parameters[0].state[0] = TensorId(1000)).contains("tensor 1000"));
    assert!(refused(|p| p.inputs[0].tensor = TensorId(u32::MAX)).contains("does not exist"));
}

#[test]
fn tensors_that_do_not_fit_the_arena_are_refused() {
    assert!(refused(|p| p.tensors[2].offset += 1).contains("aligned"));
    assert!(refused(|p| p.tensors[9].offset = p.arena_bytes).contains("outside the arena"));
    assert!(refused(|p| p.tensors[2].offset = u64::MAX - 255).contains("outside the arena"));
    assert!(refused(|p| p.tensors[2].bytes -= 4).contains("shape"));
    assert!(refused(|p| p.tensors[2].shape = vec![u64::MAX, u64::MAX]).contains("shape"));
    assert!(refused(|p| p.tensors[2].tier = Tier::Host).contains("tier"));
    assert!(refused(|p| p.arena_bytes += 256).contains("budget"));
    assert!(refused(|p| (p.arena_bytes, p.budget_bytes) = (p.arena_bytes + 256, u64::MAX)).contains("its tensors need"));
}

#[test]
fn tensors_that_share_memory_while_alive_are_refused() {
    assert!(refused(|p| p.tensors[8].offset = p.tensors[7].offset).contains("share memory"));
    let apart = refused(|p| {
        p.tensors[8].offset = p.tensors[9].offset;
        p.tensors[8].last = 2;
    });
    assert!(apart.contains("share memory"), "{apart}");
}

#[test]
fn tensors_that_share_memory_one_after_the_other_are_accepted() {
    let mut plan = regression(1);
    // The error's last reader is step 2; a second copy of the control block's size would begin at 3.
    let late = Tensor { name: "late".into(), role: Role::Activation, first: 3, last: 4, ..plan.tensors[8].clone() };
    plan.tensors.push(late);
    verify(&plan).unwrap();
    plan.tensors.last_mut().unwrap().first = 2;
    assert!(verify(&plan).unwrap_err().contains("share memory"));
}

#[test]
fn uses_outside_a_lifetime_are_refused() {
    assert!(refused(|p| p.tensors[8].last = 1).contains("outside its lifetime"));
    assert!(refused(|p| p.tensors[2].first = 1).contains("as long as the schedule"));
    assert!(refused(|p| p.tensors[7].first = 1).contains("from one micro-batch to the next"));
    assert!(refused(|p| p.tensors[9].last = 1).contains("until the end of a micro-batch"));
    assert!(refused(|p| p.tensors[9].last = 99).contains("of 5"));
}

#[test]
fn bindings_that_do_not_fit_a_kernel_are_refused() {
    assert!(refused(|p| p.schedule.micro[0].args.truncate(3)).contains("3 tensors are bound to 4 arguments"));
    assert!(refused(|p| p.schedule.micro[0].args[3] = TensorId(0)).contains("written and bound twice"));
    assert!(refused(|p| p.schedule.micro[0].args[1] = TensorId(9)).contains("argument 1 has 48 bytes"));
    let other = refused(|p| p.tensors[8].dtype = fp8c_kernels::DType::I32);
    assert!(other.contains("argument 3 is f32, tensor error is i32"), "{other}");
}

#[test]
fn reading_before_writing_is_refused() {
    assert!(refused(|p| p.schedule.micro.swap(0, 1)).contains("lifetime") || refused(|p| p.schedule.micro.swap(0, 1)).contains("before"));
    assert!(refused(|p| p.parameters[0].gradient = None).contains("read before it is written"));
}

#[test]
fn writing_what_the_trainer_owns_is_refused() {
    assert!(refused(|p| p.schedule.micro[0].args[3] = TensorId(1)).contains("twice"));
    let input = refused(|p| {
        p.schedule.micro[0].args[2] = TensorId(8);
        p.schedule.micro[0].args[3] = TensorId(1);
    });
    assert!(input.contains("only the trainer") || input.contains("before it is written"), "{input}");
    let early = refused(|p| p.schedule.micro[2].args[3] = TensorId(3));
    assert!(early.contains("only the update may"), "{early}");
}

#[test]
fn a_kernel_that_reaches_outside_its_arguments_is_refused() {
    let reason = refused(|p| {
        let Kernel::Row(k) = &mut p.kernels[0].kernel else { unreachable!() };
        let Stmt::Load { access, .. } = &mut k.body[0] else { unreachable!() };
        access.offset = 1;
    });
    assert!(reason.contains("kernel row_0"), "{reason}");
}

#[test]
fn scratch_memory_that_does_not_fit_is_refused() {
    assert!(refused(|p| p.schedule.micro[0].scratch = None).contains("scratch memory and has none"));
    assert!(refused(|p| p.schedule.micro[0].scratch = Some(TensorId(8))).contains("no scratch memory"));
    let late = refused(|p| (p.tensors[10].first, p.tensors[10].last) = (1, 1));
    assert!(late.contains("outside its lifetime"), "{late}");
    let small = refused(|p| {
        let t = &mut p.tensors[10];
        (t.shape, t.bytes) = (vec![1], 1);
    });
    assert!(small.contains("scratch memory and has 1"), "{small}");
}

/// Leaves the last column out of what a kernel of two dimensions stores.
fn store_less(kernel: &mut Kernel) {
    let Kernel::Row(k) = kernel else { unreachable!() };
    let upper = k.space[1] as i64 - 1;
    for stmt in &mut k.body {
        if let Stmt::Store { access, .. } = stmt {
            access.guards.push(Guard { dim: 1, lower: 0, upper });
        }
    }
}

#[test]
fn a_part_of_a_tensor_is_not_the_tensor() {
    let reason = refused(|p| store_less(&mut p.kernels[0].kernel));
    assert!(reason.contains("step 1") && reason.contains("error is read before it is written"), "{reason}");
}

#[test]
fn scratch_memory_is_no_data() {
    let read = refused(|p| {
        let id = p.schedule.micro[0].scratch.unwrap();
        let offset = p.tensors[id.0 as usize].offset;
        p.tensors[id.0 as usize] = Tensor { role: Role::Scratch, offset, ..p.tensors[8].clone() };
        p.schedule.micro[1].args[0] = id;
        p.target = "sm_90a".into();
        p.arena_bytes = top(p);
    });
    assert!(read.contains("scratch memory and an argument"), "{read}");
}

/// What a plan's tensors need.
fn top(p: &Plan) -> u64 {
    p.tensors.iter().map(|t| (t.offset + t.bytes.max(1)).next_multiple_of(ALIGN)).max().unwrap()
}

#[test]
fn a_tensor_has_one_owner() {
    assert!(refused(|p| p.parameters[0].gradient = Some(p.parameters[0].tensor)).contains("two owners"));
    assert!(refused(|p| p.parameters[0].gradient = Some(p.parameters[0].state[0])).contains("two owners"));
    assert!(refused(|p| p.parameters[0].state[1] = p.parameters[0].state[0]).contains("two owners"));
    assert!(refused(|p| p.outputs[0].tensor = TensorId(8)).contains("output"));
    assert!(refused(|p| p.parameters.clear()).contains("belongs to nothing"));
    assert!(refused(|p| (p.inputs[0].tensor, p.inputs[1].tensor) = (TensorId(1), TensorId(0))).contains("input x"));
}

/// Puts a step of the update behind another one of it, with the lifetimes it needs.
fn update(p: &mut Plan, steps: &[usize]) {
    let old = p.schedule.update.clone();
    p.schedule.update = steps.iter().map(|&i| Step { scratch: None, ..old[i].clone() }).collect();
    p.target = "sm_90a".into();
    let (before, end) = ((p.schedule.micro.len() + old.len()) as u32 - 1, (p.schedule.micro.len() + steps.len()) as u32 - 1);
    p.tensors.iter_mut().filter(|t| t.last == before).for_each(|t| t.last = end);
    p.tensors.iter_mut().for_each(|t| (t.first, t.last) = (t.first.min(end), t.last.min(end)));
}

#[test]
fn each_trained_parameter_is_updated_once_and_read_before() {
    assert!(refused(|p| update(p, &[0])).contains("is not updated"));
    assert!(refused(|p| update(p, &[0, 1, 1])).contains("used after its update"));
    assert!(refused(|p| update(p, &[1, 0])).contains("written after an update has read it"));
    assert!(refused(|p| p.parameters[0].trainable = false).contains("not trained"));
    let late = refused(|p| {
        update(p, &[0, 1, 1]);
        p.schedule.update[2] = Step { args: vec![TensorId(0), TensorId(2), TensorId(1), TensorId(8)], ..p.schedule.micro[0].clone() };
        p.schedule.update[2].scratch = None;
        p.tensors[8].last = 5;
        p.tensors.truncate(10);
        p.schedule.micro.iter_mut().for_each(|s| s.scratch = None);
        p.arena_bytes = top(p);
    });
    assert!(late.contains("tensor w is used after its update"), "{late}");
}

#[test]
fn a_gradient_is_the_sum_over_the_micro_batches_each_counted_once() {
    let overwritten = refused(|p| {
        let Kernel::Row(k) = &mut p.kernels[2].kernel else { unreachable!() };
        k.args[3].mode = fp8c_kernels::program::Mode::Write;
        for stmt in &mut k.body {
            if let Stmt::Accumulate { arg, access, x } = stmt.clone() {
                *stmt = Stmt::Store { arg, access, x };
            }
        }
    });
    assert!(overwritten.contains("not summed over the micro-batches"), "{overwritten}");
    let twice = refused(|p| {
        p.target = "sm_90a".into();
        let again = Step { scratch: None, ..p.schedule.micro[2].clone() };
        p.schedule.micro.push(again);
        p.tensors.iter_mut().filter(|t| t.last >= 2).for_each(|t| t.last += 1);
        p.tensors.iter_mut().filter(|t| t.first > 2).for_each(|t| t.first += 1);
    });
    assert!(twice.contains("as an earlier step has done"), "{twice}");
}

#[test]
fn numbers_that_things_are_repeated_or_allocated_by_are_bounded() {
    assert!(refused(|p| p.accumulation = 1 << 31).contains("at most 65536"));
    let large = refused(|p| {
        p.accumulation = 1 << 16;
        let t = &mut p.tensors[0];
        (t.shape, t.bytes, t.offset) = (vec![1 << 20], 1 << 22, p.arena_bytes);
        p.inputs[0].shape = vec![1 << 20];
        (p.arena_bytes, p.budget_bytes) = (p.arena_bytes + (1 << 22), u64::MAX);
    });
    assert!(large.contains("inputs of a step"), "{large}");
}

#[test]
fn a_plan_for_a_gpu_needs_no_scratch_memory() {
    let mut plan = regression(2);
    plan.target = "sm_90a".into();
    plan.schedule.micro.iter_mut().chain(&mut plan.schedule.update).for_each(|s| s.scratch = None);
    plan.tensors.retain(|t| t.role != Role::Scratch);
    plan.arena_bytes = top(&plan);
    verify(&plan).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = opened(&plan, folder.path());
    let mut on_cpu = fp8c_runtime::session::Session::new(&file, Default::default()).unwrap();
    let batch = fp8c_runtime::session::Batch::new(&plan);
    assert!(on_cpu.step(&batch, &fp8c_runtime::hyper::Hyper::default()).unwrap().loss.is_finite());
}

#[test]
fn a_hostile_plan_of_many_steps_and_parts_is_refused_in_time() {
    let mut plan = regression(1);
    let n = 5000;
    let part = |i: i64| {
        let at = Access { offset: 7 * i, strides: vec![1], guards: vec![] };
        Stmt::Store { arg: 0, access: at, x: Var(0) }
    };
    let mut body = vec![Stmt::Const { kind: Kind::Float, value: Literal::float(0.0) }];
    body.extend((0..60).map(part));
    let arg = Arg { dtype: fp8c_kernels::DType::F32, elements: 1 << 16, mode: fp8c_kernels::program::Mode::Write };
    let kernel = Kernel::Row(RowProgram { space: vec![3], row_dims: 1, args: vec![arg], body });
    plan.kernels.push(KernelEntry { name: "parts".into(), kernel, launches: Default::default() });
    plan.target = "sm_90a".into();
    plan.schedule.micro.iter_mut().chain(&mut plan.schedule.update).for_each(|s| s.scratch = None);
    plan.tensors.retain(|t| t.role != Role::Scratch);
    let id = TensorId(plan.tensors.len() as u32);
    let step = Step { kernel: 5, args: vec![id], ..plan.schedule.micro[0].clone() };
    plan.schedule.micro.extend(vec![step; n]);
    plan.tensors.iter_mut().filter(|t| t.last == 4).for_each(|t| t.last += n as u32);
    let offset = top(&plan);
    plan.tensors.push(Tensor {
        name: "parts".into(),
        shape: vec![1 << 16],
        bytes: 1 << 18,
        offset,
        last: n as u32 + 2,
        ..plan.tensors[8].clone()
    });
    (plan.arena_bytes, plan.budget_bytes) = (offset + (1 << 18), u64::MAX);
    let started = std::time::Instant::now();
    verify(&plan).unwrap();
    assert!(started.elapsed().as_secs_f64() < 2.0, "{:?}", started.elapsed());
}

#[test]
fn names_that_are_given_twice_are_refused() {
    assert!(refused(|p| p.inputs[1].name = "x".into()).contains("two inputs"));
    assert!(refused(|p| p.kernels[1].name = "row_0".into()).contains("two kernels"));
    assert!(refused(|p| p.parameters.push(p.parameters[0].clone())).contains("listed twice"));
}

#[test]
fn a_wrong_permutation_is_refused() {
    assert!(refused(|p| p.parameters[0].perm = Some(vec![0, 0])).contains("shape"));
    assert!(refused(|p| p.parameters[0].perm = Some(vec![0, 7])).contains("shape"));
    assert!(refused(|p| p.parameters[0].shape = vec![u64::MAX, 2]).contains("shape"));
}

/// Every place of a JSON document that holds a number, a string or a list.
fn places(value: &Value, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            path.push(k.clone());
            places(v, path, out);
            path.pop();
        }),
        Value::Array(list) => {
            out.push(path.clone());
            list.iter().enumerate().for_each(|(i, v)| {
                path.push(i.to_string());
                places(v, path, out);
                path.pop();
            });
        }
        _ => out.push(path.clone()),
    }
}

fn at<'a>(value: &'a mut Value, path: &[String]) -> &'a mut Value {
    path.iter().fold(value, |v, key| match v {
        Value::Array(list) => &mut list[key.parse::<usize>().unwrap()],
        other => other.get_mut(key).unwrap(),
    })
}

/// What a mutation puts in a place.
fn replacement(old: &Value, choice: usize, number: i64) -> Value {
    match (old, choice % 8) {
        (Value::Array(list), 0) => Value::Array(list.iter().skip(1).cloned().collect()),
        (Value::Array(list), 1) => Value::Array(list.iter().chain(list).cloned().collect()),
        (Value::Array(_), 2) => Value::Array(vec![]),
        (_, 3) => Value::from(u64::MAX),
        (_, 4) => Value::from(i64::MIN),
        (_, 5) => Value::Null,
        (_, 6) => Value::from(1u64 << (number.unsigned_abs() % 64)),
        _ => Value::from(number),
    }
}

/// True when every byte that the plan's steps and ports touch lies in the arena.
fn inside(plan: &Plan) -> bool {
    let steps = plan.schedule.micro.iter().chain(&plan.schedule.update);
    let bound = steps.flat_map(|s| {
        let args = plan.kernels[s.kernel as usize].kernel.args();
        s.args.iter().zip(args).map(|(id, a)| (*id, a.bytes())).collect::<Vec<_>>()
    });
    let ports = plan.inputs.iter().chain(&plan.outputs).map(|p| (p.tensor, plan.tensor(p.tensor).bytes));
    bound.chain(ports).all(|(id, bytes)| {
        let t = &plan.tensors[id.0 as usize];
        bytes <= t.bytes && t.offset.checked_add(t.bytes).is_some_and(|end| end <= plan.arena_bytes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn mutated_plans_never_panic_and_never_verify_out_of_bounds(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..8, -3i64..70), 1..4),
    ) {
        let mut json = serde_json::to_value(regression(2)).unwrap();
        for (place, choice, number) in changes {
            let mut all = vec![];
            places(&json, &mut vec![], &mut all);
            let target = at(&mut json, &all[place.index(all.len())]);
            *target = replacement(target, choice, number);
        }
        let plan = serde_json::from_value::<Plan>(json).ok().filter(|p| verify(p).is_ok());
        prop_assert!(plan.is_none_or(|p| inside(&p)));
    }

    #[test]
    fn plan_files_with_flipped_bytes_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.plan");
        let mut bytes = sound_file().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = PlanFile::open(&path) {
            prop_assert!(verify(file.plan()).is_ok());
        }
    }
}

/// The bytes of a sound plan file, written once.
fn sound_file() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.plan");
        write(&regression(1), &path);
        std::fs::read(&path).unwrap()
    })
}
