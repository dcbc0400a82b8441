use super::*;
use fp8c_kernels::program::Unary;

/// `loss(tanh(x w + b) v)` with a frozen scale and a parameter that nothing uses.
fn small_network() -> Case {
    let mut case = Case::new();
    let (x, w, b, v) = (case.any(&[4, 3]), case.any(&[3, 5]), case.any(&[5]), case.any(&[5, 2]));
    case.graph.parameters[0].trainable = false;
    case.any(&[7]);
    let matmul = Op::Matmul { trans_a: false, trans_b: false, dtype: DType::F32 };
    let h = case.add(matmul.clone(), &[x, w]);
    let h = case.add(Op::Map(Expr::binary(Binary::Add), DType::F32), &[h, b]);
    let h = case.add(Op::Map(Expr::unary(Unary::Tanh), DType::F32), &[h]);
    let y = case.add(matmul, &[h, v]);
    case.loss_of(y);
    case
}

const PLAIN: TrainOptions = TrainOptions { optimizer: Optimizer::AdamW, state_dtype: DType::F32, accumulation: 1, clip: Clip::Exact };

#[test]
fn a_frozen_parameter_costs_nothing_and_an_unused_one_is_named() {
    let case = small_network();
    let joint = differentiate(case.graph, &PLAIN).unwrap();
    joint.verify().unwrap();
    assert_eq!(joint.gradients.iter().map(|g| g.parameter).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(untrained(&joint), ["p4"]);
    // Two products forward; backward, one for each of w and v and one for h.
    assert_eq!(joint.nodes.iter().filter(|n| matches!(n.op, Op::Matmul { .. })).count(), 5);
}

#[test]
fn gradients_are_complete_in_reverse_order_of_use() {
    let joint = differentiate(small_network().graph, &PLAIN).unwrap();
    let at = |p: usize| joint.values[joint.gradients.iter().find(|g| g.parameter == p).unwrap().value.index()].node;
    assert!(at(3) < at(2) && at(2) < at(1));
    assert!(joint.nodes.iter().all(|n| n.epoch() != Epoch::Update || n.inputs.len() != 1 || !matches!(n.op, Op::Matmul { .. })));
}

#[test]
fn the_seed_is_the_loss_scale() {
    let case = small_network();
    let joint = with_gradients(case.graph.clone(), case.graph.loss.unwrap(), false).unwrap();
    let gradient = |scale: f64| {
        let sources = |node: &Node, _: &TensorType| match node.op {
            Op::Parameter(p) => Some(case.values[p].clone()),
            Op::Control => Some(control(scale)),
            _ => None,
        };
        let values = run(&joint, &sources, Rounding::Exact).unwrap();
        values[joint.gradients[0].value.index()].floats().unwrap().to_vec()
    };
    let (one, many) = (gradient(1.0), gradient(1024.0));
    assert!(one.iter().zip(&many).all(|(a, b)| a * 1024.0 == *b));
}

#[test]
fn several_micro_batches_sum_into_a_persistent_buffer() {
    let joint = differentiate(small_network().graph, &TrainOptions { accumulation: 4, ..PLAIN }).unwrap();
    joint.verify().unwrap();
    for g in &joint.gradients {
        let node = joint.def(g.value);
        assert_eq!((&node.op, node.epoch()), (&Op::AccumulateGradient, Epoch::Backward));
        assert_eq!(
            joint.def(node.inputs[0]).op,
            Op::State { parameter: g.parameter, slot: GRADIENT_SLOT, dtype: DType::F32, grouped: false }
        );
    }
    assert!(joint.nodes.iter().any(|n| n.op == Op::FinishNorm { accumulation: 4 }));
}

/// Every update's parameter after one step of a joint graph, by parameter.
fn stepped(case: &Case, options: &TrainOptions, control: &Tensor) -> Vec<(usize, Vec<f64>)> {
    let joint = differentiate(case.graph.clone(), options).unwrap();
    joint.verify().unwrap();
    let sources = |node: &Node, ty: &TensorType| match node.op {
        Op::Parameter(p) => Some(case.values[p].clone()),
        Op::Control => Some(control.clone()),
        Op::DecayOf(_) => Some(Tensor::float([1], vec![1.0])),
        Op::State { .. } => Some(Tensor::zeros(ty)),
        _ => None,
    };
    let values = run(&joint, &sources, Rounding::Exact).unwrap();
    let updates = joint.nodes.iter().filter(|n| matches!(n.op, Op::Optimize(_)));
    let parameter = |n: &Node| match joint.def(n.inputs[0]).op {
        Op::Parameter(p) => p,
        _ => panic!("an update of something else than a parameter"),
    };
    updates.map(|n| (parameter(n), values[n.results[0].index()].floats().unwrap().to_vec())).collect()
}

fn settings(clip: f64) -> Tensor {
    let mut c = vec![0.0; Control::LEN];
    (c[Control::LEARNING_RATE], c[Control::BETA1], c[Control::BETA2], c[Control::EPS]) = (0.01, 0.9, 0.99, 1e-8);
    (c[Control::CORRECTION1], c[Control::CORRECTION2]) = (1.0 - 0.9, (1.0f64 - 0.99).sqrt());
    (c[Control::LOSS_SCALE], c[Control::CLIP]) = (8.0, clip);
    Tensor::float([Control::LEN as u64], c)
}

#[test]
fn each_optimizer_lowers_the_loss() {
    let case = small_network();
    for optimizer in [Optimizer::AdamW, Optimizer::Sgd, Optimizer::Lion] {
        let mut after = case.values.clone();
        for (p, values) in stepped(&case, &TrainOptions { optimizer, ..PLAIN }, &settings(f64::INFINITY)) {
            after[p] = Tensor::float(after[p].shape.clone(), values);
        }
        assert!(case.loss(&after) < case.loss(&case.values) - 1e-3, "{optimizer:?}");
    }
}

#[test]
fn the_first_step_of_adam_moves_each_weight_by_the_learning_rate() {
    let case = small_network();
    for (p, values) in stepped(&case, &PLAIN, &settings(f64::INFINITY)) {
        let before = case.values[p].floats().unwrap();
        assert!(values.iter().zip(before).all(|(a, b)| ((a - b).abs() - 0.01).abs() < 1e-6));
    }
}

#[test]
fn clipping_bounds_the_step_of_plain_descent() {
    let case = small_network();
    let sgd = TrainOptions { optimizer: Optimizer::Sgd, ..PLAIN };
    let moved: f64 = stepped(&case, &sgd, &settings(0.5))
        .iter()
        .flat_map(|(p, v)| v.iter().zip(case.values[*p].floats().unwrap()).map(|(a, b)| (a - b).powi(2)).collect::<Vec<_>>())
        .sum();
    assert!((moved.sqrt() - 0.01 * 0.5).abs() < 1e-6, "moved by {}", moved.sqrt());
}

#[test]
fn a_model_without_a_loss_or_without_parameters_is_refused() {
    assert!(matches!(differentiate(Graph::default(), &PLAIN), Err(Error::Usage(_))));
    let mut case = small_network();
    case.graph.parameters.iter_mut().for_each(|p| p.trainable = false);
    assert!(matches!(differentiate(case.graph, &PLAIN), Err(Error::Usage(_))));
}

#[test]
fn gradients_follow_the_storage_of_their_values_but_those_of_parameters_are_f32() {
    let mut case = Case::new();
    let (table, w) = (case.any(&[1, 6, 4]), case.any(&[4, 3]));
    let ids = case.graph.add_source(Op::Input { name: "ids".into() }, TensorType::new(DType::I64, [1, 5, 1]), &"ids".into());
    let table = case.add(Op::Map(Expr::identity(), DType::Bf16), &[table]);
    let w = case.add(Op::Map(Expr::identity(), DType::Bf16), &[w]);
    let x = case.add(Op::Take, &[table, ids]);
    let x = case.add(Op::Reshape(vec![5, 4]), &[x]);
    let y = case.add(Op::Matmul { trans_a: false, trans_b: false, dtype: DType::Bf16 }, &[x, w]);
    case.loss_of(y);
    let joint = differentiate(case.graph, &PLAIN).unwrap();
    joint.verify().unwrap();
    let dtypes = |want: &dyn Fn(&Op) -> bool| -> Vec<DType> {
        let of = joint.nodes.iter().filter(|n| n.epoch() == Epoch::Backward && want(&n.op));
        of.map(|n| joint.ty(n.results[0]).dtype).collect()
    };
    // wgrad, then dgrad.
    assert_eq!(dtypes(&|op| matches!(op, Op::Matmul { .. })), [DType::F32, DType::Bf16]);
    assert_eq!(dtypes(&|op| matches!(op, Op::PutAdd { .. })), [DType::F32]);
    assert!(joint.gradients.iter().all(|g| joint.ty(g.value).dtype == DType::F32));
}
