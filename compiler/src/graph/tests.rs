//! The verifier, the printed form and the edit helpers.

use super::parse::parse;
use super::*;
use fp8c_kernels::program::{Binary, FloatBits, Fold, Kind, Layout, Literal, Mask, PoolOp, Unary, Window};

fn site() -> Arc<str> {
    "block.0 \"quoted\" \u{e9}\\n".into()
}

fn input(g: &mut Graph, name: &str, dtype: DType, shape: &[u64]) -> ValueId {
    g.add_source(Op::Input { name: name.into() }, TensorType::new(dtype, shape), &site())
}

fn constant(g: &mut Graph, data: ConstData) -> ValueId {
    let ty = data.ty.clone();
    g.add_source(Op::Constant(Arc::new(data)), ty, &"c".into())
}

fn parameter(name: &str, shape: &[u64], init: Init) -> Parameter {
    Parameter {
        name: name.into(),
        source: format!("onnx::{name}"),
        trainable: true,
        outside_perm: (shape.len() == 2).then(|| vec![1, 0]),
        init,
        ty: TensorType::new(DType::F32, shape),
    }
}

/// `x w` with its loss: two sources, a product, a sum, a scalar.
fn small() -> Graph {
    let mut g = Graph { parameters: vec![parameter("w", &[3, 2], Init::Normal { std: 0.02 })], ..Graph::default() };
    let x = input(&mut g, "x", DType::F32, &[4, 3]);
    let w = g.add_source(Op::Parameter(0), TensorType::new(DType::F32, [3, 2]), &"w".into());
    let y = g.add_forward(Op::Matmul { trans_a: false, trans_b: false, dtype: DType::F32 }, &[x, w], &site()).unwrap()[0];
    let s = g.add_forward(Op::Reduce { op: Fold::Sum, axes: vec![0, 1], dtype: DType::F32 }, &[y], &site()).unwrap()[0];
    g.loss = Some(g.add_forward(Op::Reshape(vec![]), &[s], &site()).unwrap()[0]);
    g.outputs.push(Output { name: "y".into(), value: y });
    g.verify().unwrap();
    g
}

fn of(pass: Pass, site: &str) -> Provenance {
    Provenance { pass, origin: None, site: site.into() }
}

/// What the verifier says of a graph after a change to it.
fn refusal(change: impl FnOnce(&mut Graph)) -> String {
    let mut g = small();
    change(&mut g);
    g.verify().unwrap_err().to_string()
}

#[test]
fn the_verifier_refuses_each_broken_invariant() {
    let cases: [(&str, String); 13] = [
        ("before it is defined", refusal(|g| g.nodes.swap(2, 3))),
        ("before it is defined", refusal(|g| g.nodes[2].inputs[0] = ValueId(99))),
        ("defines value 2 again", refusal(|g| g.nodes[3].results[0] = ValueId(2))),
        ("is never defined", refusal(|g| g.values.push(g.values[0].clone()))),
        ("but its inputs give", refusal(|g| g.values[2].ty.dtype = DType::Bf16)),
        ("needs 2 to 2 inputs", refusal(|g| g.nodes[2].inputs.truncate(1))),
        ("two parameters have the name", refusal(|g| g.parameters.push(g.parameters[0].clone()))),
        (
            "is an input with inputs",
            refusal(|g| g.nodes[1] = Node { results: vec![ValueId(1)], inputs: vec![ValueId(0)], origin: NodeId(1), ..g.nodes[0].clone() }),
        ),
        ("no node that gives values", refusal(|g| g.nodes[3].origin = NodeId(2))),
        ("no node that gives values", refusal(|g| (g.nodes[4].pass, g.nodes[4].origin) = (Pass::Wgrad, NodeId(9)))),
        ("earlier epoch", refusal(|g| g.nodes[3].pass = Pass::Update)),
        ("no f32 scalar", refusal(|g| g.loss = Some(ValueId(2)))),
        ("has another shape", refusal(|g| g.gradients.push(Gradient { parameter: 0, value: ValueId(2) }))),
    ];
    for (expected, said) in cases {
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }
}

#[test]
fn the_verifier_refuses_a_source_after_an_operator_and_a_source_twice() {
    let late = refusal(|g| {
        let ty = TensorType::new(DType::F32, [16]);
        g.add_source(Op::Control, ty, &"late".into());
    });
    assert!(late.contains("after the first operator"), "{late}");
    let mut g = Graph::default();
    input(&mut g, "x", DType::F32, &[1]);
    input(&mut g, "x", DType::F32, &[1]);
    assert!(g.verify().unwrap_err().to_string().contains("is there twice"));
}

/// A gradient buffer that is summed into, and then an operator on `then`.
fn accumulated(then: impl Fn(&[ValueId; 3]) -> ValueId) -> Result<(), crate::Error> {
    let mut g = Graph { parameters: vec![parameter("w", &[2], Init::Zeros)], ..Graph::default() };
    let x = input(&mut g, "x", DType::F32, &[2]);
    let state = Op::State { parameter: 0, slot: 9, dtype: DType::F32, grouped: false };
    let old = g.add_source(state, TensorType::new(DType::F32, [2]), &"w".into());
    let new = g.add(Op::AccumulateGradient, &[old, x], &of(Pass::Dgrad, "w"))?[0];
    let read = then(&[x, old, new]);
    g.add(Op::Map(Expr::unary(Unary::Neg), DType::F32), &[read], &of(Pass::Dgrad, "w"))?;
    g.verify()
}

#[test]
fn nothing_reads_a_state_that_was_replaced() {
    assert!(accumulated(|[_, _, new]| *new).is_ok());
    let said = accumulated(|[_, old, _]| *old).unwrap_err().to_string();
    assert!(said.contains("replaced in place"), "{said}");
}

#[test]
fn an_update_of_a_constant_is_refused() {
    let mut g = Graph::default();
    let c = constant(&mut g, ConstData::f32([1], &[0.0]));
    g.add(Op::SumSquares, &[c, c], &of(Pass::Update, "sum")).unwrap();
    assert!(g.verify().unwrap_err().to_string().contains("replaces a constant"));
}

fn round_trips(g: &Graph, data: &[Arc<ConstData>]) {
    g.verify().unwrap();
    let text = g.to_string();
    let read = parse(&text, data).unwrap_or_else(|e| panic!("{e}\n{text}"));
    read.verify().unwrap();
    assert_eq!(read.to_string(), text);
    let ops = |g: &Graph| g.nodes.iter().map(|n| (n.op.clone(), n.pass, n.origin, n.site.clone())).collect::<Vec<_>>();
    assert_eq!(ops(&read), ops(g));
}

#[test]
fn a_graph_reads_back_as_it_was_printed() {
    round_trips(&small(), &[]);
}

#[test]
fn parameters_print_every_way_they_can_begin() {
    let mut g = Graph::default();
    let file = Init::File { path: "weights.bin".into(), offset: 16, bytes: 24, dtype: SourceDType::F16 };
    let large = Arc::new(ConstData::f32([40], &(0..40).map(|i| i as f32).collect::<Vec<_>>()));
    g.parameters = vec![
        parameter("a", &[3, 2], file),
        parameter("b", &[2], Init::Data(Arc::new(ConstData::f32([2], &[1e-30, -0.0])))),
        parameter("c", &[40], Init::Data(large.clone())),
        parameter("d", &[2], Init::Uniform { low: -0.5, high: 0.25 }),
        Parameter { trainable: false, ..parameter("e", &[], Init::Ones) },
    ];
    for p in 0..5 {
        let ty = g.parameters[p].ty.clone();
        g.add_source(Op::Parameter(p), ty, &"p".into());
    }
    round_trips(&g, &[large]);
}

#[test]
fn constants_print_in_full_as_one_element_or_as_a_hash() {
    let mut g = Graph::default();
    constant(&mut g, ConstData::f32([4], &[f32::INFINITY, f32::NEG_INFINITY, 0.1, -0.0]));
    constant(&mut g, ConstData::f32([5, 5], &[0.5; 25]));
    constant(&mut g, ConstData::i64([], &[i64::MIN]));
    constant(&mut g, ConstData { ty: TensorType::new(DType::Bool, [17]), bytes: vec![1; 17] });
    constant(&mut g, ConstData { ty: TensorType::new(DType::Bf16, [2]), bytes: vec![0x80, 0x3f, 0, 0xc0] });
    let nan = Arc::new(ConstData::f32([1], &[f32::NAN]));
    let code = Arc::new(ConstData { ty: TensorType::new(DType::E4m3, [2]), bytes: vec![1, 2] });
    for data in [&nan, &code] {
        constant(&mut g, ConstData::clone(data));
    }
    round_trips(&g, &[nan.clone(), code]);
    let text = g.to_string();
    assert!(text.contains("constant all [0.5]") && text.contains("[inf, -inf, 0.1, -0.0]"), "{text}");
    let said = parse(&text, &[nan]).unwrap_err().to_string();
    assert!(said.contains("which was not given"), "{said}");
}

/// An operator with the types of its inputs.
type Sample = (Op, Vec<(DType, Vec<u64>)>);

fn samples() -> Vec<Sample> {
    let f = |shape: &[u64]| (DType::F32, shape.to_vec());
    let i = |shape: &[u64]| (DType::I64, shape.to_vec());
    let bits = |x: f32| FloatBits(x.to_bits());
    let window = Window { input: [4, 4], output: [2, 2], kernel: [2, 2], stride: [2, 2], dilation: [1, 1], pad: [0, 0] };
    let conv = ConvOp { groups: 1, window, dtype: DType::F32 };
    let norm = NormOp { center: true, axes: 1, eps: bits(1e-5), bias: true, dtype: DType::Bf16 };
    let mask = Mask { causal: true, window: Some(3), align_end: true };
    let attention = AttentionOp { scale: bits(0.125), softcap: Some(bits(30.0)), mask, bias: false };
    let ce = CrossEntropyOp { ignore_index: Some(-100), sum: false, dtype: DType::F32 };
    let literal = |kind, value| ExprNode::Const { kind, value };
    let body = vec![
        ExprNode::Operand(0),
        literal(Kind::Float, Literal::Float(FloatBits(0x7fc0_0001))),
        ExprNode::Binary(Binary::Fmod, 0, 1),
        literal(Kind::Int, Literal::Int(-3)),
        ExprNode::Cast(3, DType::Bf16),
        literal(Kind::Bool, Literal::Int(1)),
        ExprNode::Select(5, 2, 4),
        ExprNode::Unary(Unary::GeluErf, 6),
    ];
    let heads = [f(&[1, 2, 3, 4]), f(&[1, 1, 3, 4]), f(&[1, 1, 3, 5])];
    let after = [f(&[1, 2, 3, 5]), f(&[1, 2, 3, 1]), f(&[1, 2, 3, 5])];
    let (img, ker, dy) = (f(&[1, 3, 4, 4]), f(&[2, 3, 2, 2]), f(&[1, 2, 2, 2]));
    vec![
        (Op::Map(Expr { body }, DType::Bf16), vec![f(&[2])]),
        (Op::Reduce { op: Fold::Prod, axes: vec![0], dtype: DType::F32 }, vec![f(&[2, 3])]),
        (Op::Transpose(vec![1, 0]), vec![f(&[2, 3])]),
        (Op::Slice { starts: vec![2], steps: vec![-1], sizes: vec![2] }, vec![f(&[3])]),
        (Op::Pad { low: vec![1], high: vec![0] }, vec![f(&[3])]),
        (Op::Concat { axis: 0 }, vec![f(&[3]), f(&[1])]),
        (Op::Broadcast(vec![2, 3]), vec![f(&[3])]),
        (Op::Iota { shape: vec![2, 3], axis: 1 }, vec![]),
        (Op::Take, vec![f(&[1, 4, 2]), i(&[1, 3, 1])]),
        (Op::PutAdd { extent: 4, dtype: DType::F32 }, vec![f(&[1, 3, 2]), i(&[1, 3, 1])]),
        (Op::MaskGradient, vec![f(&[2, 3]), (DType::Bool, vec![2, 1])]),
        (Op::CumSum { axis: 0, exclusive: true, reverse: false }, vec![f(&[3])]),
        (Op::Conv(conv.clone()), vec![img.clone(), ker.clone()]),
        (Op::ConvDgrad(conv.clone()), vec![dy.clone(), ker]),
        (Op::ConvWgrad(conv), vec![dy, img.clone()]),
        (Op::Pool { op: PoolOp::Average, window }, vec![img.clone()]),
        (Op::PoolGrad { op: PoolOp::AverageWithPadding { pad_end: [1, 0] }, window }, vec![img.clone(), f(&[1, 3, 2, 2])]),
        (Op::Pool { op: PoolOp::Max, window }, vec![img]),
        (Op::Norm(norm.clone()), vec![f(&[2, 3]), f(&[3]), f(&[3])]),
        (Op::NormGrad(norm), vec![f(&[2, 3]), f(&[2, 3]), f(&[3]), f(&[2, 1]), f(&[2, 1])]),
        (Op::Softmax { log: true }, vec![f(&[2, 3])]),
        (Op::SoftmaxGrad { log: false }, vec![f(&[2, 3]), f(&[2, 3])]),
        (Op::Attention(attention.clone()), heads.to_vec()),
        (Op::AttentionGrad(AttentionOp { softcap: None, ..attention }), [heads.as_slice(), &after].concat()),
        (Op::Rotary { rotated: 2, interleaved: true, inverse: false }, vec![f(&[1, 1, 3, 4]), f(&[3, 2]), f(&[3, 2])]),
        (Op::CrossEntropy(ce.clone()), vec![f(&[2, 5]), i(&[2])]),
        (Op::CrossEntropyGrad(CrossEntropyOp { ignore_index: None, ..ce }), vec![f(&[]), f(&[2, 5]), i(&[2]), f(&[2])]),
        (Op::Quantize { layout: Layout::RowsAndColumns, power_of_two: true }, vec![f(&[2, 3])]),
        (
            Op::ScaledMatmul { block_b: true, shape: vec![2, 5], dtype: DType::Bf16 },
            vec![(DType::E4m3, vec![2, 3]), f(&[2, 1]), (DType::E4m3, vec![5, 3]), f(&[1, 1])],
        ),
    ]
}

/// A graph of one operator on inputs of these types.
fn lone((op, types): &Sample) -> Result<Graph, crate::Error> {
    let mut g = Graph::default();
    let inputs: Vec<ValueId> = types.iter().enumerate().map(|(i, (d, s))| input(&mut g, &format!("x{i}"), *d, s)).collect();
    g.add_forward(op.clone(), &inputs, &site())?;
    Ok(g)
}

#[test]
fn every_operator_reads_back_with_its_attributes() {
    for sample in samples() {
        round_trips(&lone(&sample).unwrap(), &[]);
    }
}

#[test]
fn no_inputs_make_inference_panic() {
    let shapes: [&[u64]; 6] = [&[], &[3], &[2, 3], &[1, 4, 2], &[1, 2, 3, 4], &[0, 5]];
    for (op, types) in samples() {
        for count in 0..types.len() + 2 {
            for shape in shapes {
                for at in 0..count {
                    let mut types = types.clone();
                    types.resize(count, (DType::F32, shape.to_vec()));
                    types[at].1 = shape.to_vec();
                    // An error or not: that it returns is what is asked.
                    let _ = lone(&(op.clone(), types));
                }
            }
        }
    }
}

#[test]
fn damaged_text_gives_an_error_that_names_the_line() {
    let text = small().to_string();
    for (from, to, line) in [
        ("matmul", "matmil", "line 5"),
        ("trans_a=false", "trans_a=maybe", "line 5"),
        ("(%0, %1)", "(%0, %7)", "line 5"),
        ("f32[4, 2]", "f32[4, 3]", "line 5"),
        ("loss", "lose", "line 9"),
        ("normal", "gamma", "line 1"),
    ] {
        let damaged = text.replacen(from, to, 1);
        assert_ne!(damaged, text);
        let said = parse(&damaged, &[]).unwrap_err().to_string();
        assert!(said.contains(line), "{said:?} for {to}");
    }
}

proptest::proptest! {
    #[test]
    fn mutated_text_never_panics(at in 0usize..4000, byte in 0x20u8..0x7f, cut in 0usize..4000) {
        let text: String = samples().iter().map(|s| lone(s).unwrap().to_string()).nth(at % 27).unwrap();
        let mut bytes: Vec<char> = text.chars().collect();
        let n = bytes.len();
        bytes[at % n] = byte as char;
        if cut < n {
            bytes.remove(cut);
        }
        if let Ok(g) = parse(&bytes.into_iter().collect::<String>(), &[]) {
            let _ = g.verify();
        }
    }
}

#[test]
fn dead_nodes_go_and_inputs_stay() {
    let mut g = small();
    let unused = g.add_forward(Op::Map(Expr::unary(Unary::Exp), DType::F32), &[ValueId(0)], &site()).unwrap()[0];
    g.add_forward(Op::Map(Expr::unary(Unary::Exp), DType::F32), &[unused], &site()).unwrap();
    let late = g.add_source(Op::Input { name: "late".into() }, TensorType::new(DType::F32, [2]), &site());
    let (clean, map) = g.without_dead_code().unwrap();
    clean.verify().unwrap();
    assert_eq!(clean.nodes.len(), 6);
    assert_eq!((map.get(unused), map.get(late)), (None, Some(ValueId(2))));
    assert_eq!(clean.ty(clean.outputs[0].value), g.ty(g.outputs[0].value));
}

#[test]
fn users_are_named_once_each_in_order() {
    let mut g = small();
    let y = g.outputs[0].value;
    let twice = g.add_forward(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[y, y], &site()).unwrap()[0];
    assert_eq!(g.users()[y.index()], [NodeId(3), g.values[twice.index()].node]);
}

#[test]
fn a_selection_without_what_it_needs_is_refused() {
    let g = small();
    let order: Vec<NodeId> = [0, 2, 3, 4].map(NodeId).to_vec();
    assert!(g.select(&order).unwrap_err().to_string().contains("was dropped"));
}
