//! What lowering promises beyond the operators' own tests (`tests/onnx_cases`).

use super::*;
use crate::graph::{Op, TensorType};
use crate::import::model::{Attribute, Elem};
use fp8c_kernels::DType;
use proptest::prelude::*;

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> ModelNode {
    let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    let attributes = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    ModelNode { op: op.into(), name: output.into(), inputs: owned(inputs), outputs: owned(&[output]), attributes, ..Default::default() }
}

fn lowering(opset: i64) -> Lowering {
    Lowering::new(&Model { opset, ..Model::default() })
}

fn input(l: &mut Lowering, name: &str, dtype: DType, shape: &[u64]) {
    let v = l.graph.add_source(Op::Input { name: name.into() }, TensorType::new(dtype, shape), &Arc::from(name));
    l.values.insert(name.into(), v);
}

fn constant(l: &mut Lowering, name: &str, data: ConstData) {
    let v = l.constant(data);
    l.values.insert(name.into(), v);
}

fn ints(l: &Lowering, name: &str) -> Vec<i64> {
    l.graph.constant(l.values[name]).unwrap_or_else(|| panic!("{name} is not constant")).to_i64()
}

fn lower_all(l: &mut Lowering, nodes: &[ModelNode]) {
    for n in nodes {
        l.node(n).unwrap_or_else(|gap| panic!("{gap}"));
    }
}

/// The finished graph with one output.
fn finished(mut l: Lowering, output: &str) -> Graph {
    let value = l.values[output];
    l.graph.outputs = vec![crate::graph::Output { name: output.into(), value }];
    l.finish(&mut []).unwrap()
}

#[test]
fn a_value_without_elements_is_a_constant_and_no_operand_of_a_concatenation() {
    let mut l = lowering(18);
    input(&mut l, "x", DType::F32, &[2, 3]);
    for (name, i) in [("three", 3), ("one", 1), ("zero", 0)] {
        constant(&mut l, name, ConstData::i64([1], &[i]));
    }
    constant(&mut l, "edges", ConstData::i64([4], &[0, 2, 0, 0]));
    let (axis, keep) = (("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(1)));
    let nodes = [
        // What an export of a full rotary embedding does with the part that does not turn.
        node("Slice", &["x", "three", "three", "one"], "rest", &[]),
        node("Exp", &["rest"], "exp", &[]),
        node("Neg", &["x"], "turned", &[]),
        node("Concat", &["turned", "exp"], "y", &[axis]),
        node("Pad", &["exp", "edges"], "zeros", &[]),
        node("ReduceSum", &["exp", "one"], "sum", std::slice::from_ref(&keep)),
        node("ReduceSum", &["exp", "zero"], "none", &[keep]),
    ];
    lower_all(&mut l, &nodes);
    assert_eq!(l.values["y"], l.values["turned"]);
    let data = |name: &str| l.graph.constant(l.values[name]).unwrap_or_else(|| panic!("{name} is not constant")).clone();
    assert_eq!((data("exp").ty.shape.clone(), data("none").ty.shape.clone()), (vec![2, 0], vec![1, 0]));
    assert_eq!((data("zeros").ty.shape.clone(), data("zeros").to_f32()), (vec![2, 2], vec![0.0; 4]));
    assert_eq!((data("sum").ty.shape.clone(), data("sum").to_f32()), (vec![2, 1], vec![0.0; 2]));
}

#[test]
fn shape_arithmetic_of_a_dynamic_export_leaves_one_reshape() {
    let mut l = lowering(18);
    input(&mut l, "x", DType::F32, &[3, 5, 8]);
    constant(&mut l, "zero", ConstData::i64([1], &[0]));
    constant(&mut l, "rest", ConstData::i64([2], &[-1, 2]));
    let nodes = [
        node("Shape", &["x"], "s", &[]),
        node("Gather", &["s", "zero"], "batch", &[("axis", Attribute::Int(0))]),
        node("Concat", &["batch", "rest"], "to", &[("axis", Attribute::Int(0))]),
        node("Reshape", &["x", "to"], "y", &[]),
    ];
    lower_all(&mut l, &nodes);
    assert_eq!(ints(&l, "to"), [3, -1, 2]);
    let graph = finished(l, "y");
    let ops: Vec<&Op> = graph.nodes.iter().map(|n| &n.op).collect();
    assert!(matches!(ops[..], [Op::Input { .. }, Op::Reshape(shape)] if *shape == [3, 20, 2]), "{ops:?}");
}

#[test]
fn a_causal_mask_made_of_ranges_folds_to_a_constant() {
    let mut l = lowering(18);
    for (name, i) in [("zero", 0), ("one", 1), ("n", 3)] {
        constant(&mut l, name, ConstData::i64([], &[i]));
    }
    constant(&mut l, "column", ConstData::i64([2], &[3, 1]));
    let nodes = [
        node("Range", &["zero", "n", "one"], "keys", &[]),
        node("Reshape", &["keys", "column"], "queries", &[]),
        node("LessOrEqual", &["keys", "queries"], "mask", &[]),
    ];
    lower_all(&mut l, &nodes);
    assert_eq!(ints(&l, "mask"), [1, 0, 0, 1, 1, 0, 1, 1, 1]);
}

#[test]
fn axes_are_read_from_the_attribute_and_from_the_input() {
    let old = node("ReduceSum", &["x"], "y", &[("axes", Attribute::Ints(vec![-1])), ("keepdims", Attribute::Int(0))]);
    let new = node("ReduceSum", &["x", "axes"], "y", &[("keepdims", Attribute::Int(0))]);
    for n in [old, new] {
        let mut l = lowering(13);
        constant(&mut l, "x", ConstData::i64([2, 2], &[1, 2, 3, 4]));
        constant(&mut l, "axes", ConstData::i64([1], &[1]));
        lower_all(&mut l, &[n]);
        assert_eq!(ints(&l, "y"), [3, 7]);
    }
}

#[test]
fn negative_indices_count_from_the_end_and_others_are_refused() {
    let mut l = lowering(18);
    constant(&mut l, "x", ConstData::i64([3], &[10, 20, 30]));
    constant(&mut l, "last", ConstData::i64([2], &[-1, 0]));
    constant(&mut l, "beyond", ConstData::i64([], &[3]));
    lower_all(&mut l, &[node("Gather", &["x", "last"], "y", &[])]);
    assert_eq!(ints(&l, "y"), [30, 10]);
    let gap = l.node(&node("Gather", &["x", "beyond"], "z", &[])).unwrap_err();
    assert_eq!(gap.to_string(), "z (Gather) takes element 3 of an axis of 3");
}

#[test]
fn each_gap_is_reported_once_and_what_depends_on_it_is_skipped() {
    let mut l = lowering(18);
    input(&mut l, "x", DType::F32, &[2]);
    input(&mut l, "s", DType::I64, &[1]);
    let gap = l.node(&node("NonMaxSuppression", &["x"], "a", &[])).unwrap_err();
    assert_eq!(gap.to_string(), "a (NonMaxSuppression) is not among the accepted operators");
    assert_eq!(l.node(&node("Relu", &["a"], "b", &[])), Ok(()));
    assert_eq!(l.node(&node("Relu", &["b"], "c", &[])), Ok(()));
    assert!(!l.values.contains_key("c"));
    let gap = l.node(&node("Reshape", &["x", "s"], "d", &[])).unwrap_err();
    assert_eq!(gap.reason, "needs the shape to be constant once the dimensions are bound (input 1)");
    let gap = l.node(&node("Relu", &["nowhere"], "e", &[])).unwrap_err();
    assert_eq!(gap.reason, "reads nowhere, which nothing defines before it");
}

#[test]
fn an_output_that_is_not_computed_is_a_gap_only_where_it_is_read() {
    let mut l = lowering(18);
    input(&mut l, "x", DType::F32, &[1, 1, 4, 4]);
    let mut pool = node("MaxPool", &["x"], "y", &[("kernel_shape", Attribute::Ints(vec![2, 2]))]);
    pool.outputs.push("positions".into());
    assert_eq!(l.node(&pool), Ok(()));
    let gap = l.node(&node("Cast", &["positions"], "z", &[("to", Attribute::Int(7))])).unwrap_err();
    assert_eq!(gap.reason, "reads output 1 of y (MaxPool), which is not computed");
}

#[test]
fn absurd_sizes_are_refused_and_large_results_are_not_folded() {
    let mut l = lowering(18);
    constant(&mut l, "large", ConstData::i64([2], &[1 << 14, 1 << 14]));
    constant(&mut l, "absurd", ConstData::i64([2], &[1 << 40, 1 << 40]));
    assert_eq!(l.node(&node("ConstantOfShape", &["large"], "y", &[])), Ok(()));
    assert!(matches!(l.graph.def(l.values["y"]).op, Op::Broadcast(_)));
    let gap = l.node(&node("ConstantOfShape", &["absurd"], "z", &[])).unwrap_err();
    assert!(gap.reason.contains("absurd shape"), "{gap}");
}

#[test]
fn equal_constants_are_one_node_and_sources_come_first() {
    let mut l = lowering(18);
    let tensor = |i: i64| Attribute::Tensor { elem: Elem::I64, shape: vec![], bytes: i.to_le_bytes().to_vec() };
    input(&mut l, "x", DType::I64, &[2]);
    let nodes = [
        node("Constant", &[], "a", &[("value", tensor(7))]),
        node("Add", &["x", "a"], "y", &[]),
        node("Constant", &[], "b", &[("value_int", Attribute::Int(7))]),
        node("Mul", &["y", "b"], "z", &[]),
        node("Constant", &[], "unused", &[("value_int", Attribute::Int(8))]),
    ];
    lower_all(&mut l, &nodes);
    let graph = finished(l, "z");
    let sources: Vec<bool> = graph.nodes.iter().map(|n| n.op.is_source()).collect();
    assert_eq!(sources, [true, true, false, false]);
    assert_eq!(graph.nodes[3].results[0], graph.outputs[0].value);
}

#[test]
fn a_trained_attention_bias_is_decomposed_and_a_constant_one_is_not() {
    for trainable in [true, false] {
        let mut l = lowering(23);
        for name in ["q", "k", "v"] {
            input(&mut l, name, DType::F32, &[1, 2, 4, 8]);
        }
        let ty = TensorType::new(DType::F32, [4, 4]);
        let init = crate::graph::Init::Zeros;
        let parameter =
            crate::graph::Parameter { name: "b".into(), source: "b".into(), trainable, outside_perm: None, init, ty: ty.clone() };
        l.graph.parameters.push(parameter);
        let bias = l.graph.add_source(Op::Parameter(0), ty, &Arc::from("b"));
        l.values.insert("b".into(), bias);
        lower_all(&mut l, &[node("Attention", &["q", "k", "v", "b"], "y", &[])]);
        let composite = l.graph.nodes.iter().any(|n| matches!(n.op, Op::Attention(_)));
        assert_eq!(composite, !trainable);
    }
}

const ATTRIBUTES: &[&str] = &[
    "axis",
    "axes",
    "keepdims",
    "perm",
    "to",
    "dtype",
    "k",
    "upper",
    "alpha",
    "beta",
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "auto_pad",
    "ceil_mode",
    "num_groups",
    "epsilon",
    "blocksize",
    "mode",
    "split",
    "num_outputs",
    "batch_dims",
    "transA",
    "transB",
    "equation",
    "reduction",
    "ignore_index",
    "q_num_heads",
    "kv_num_heads",
    "is_causal",
    "scale",
    "softcap",
    "qk_matmul_output_mode",
    "num_heads",
    "rotary_embedding_dim",
    "interleaved",
    "start",
    "end",
    "exclusive",
    "reverse",
    "allowzero",
    "value",
    "value_int",
    "noop_with_empty_axes",
    "approximate",
    "select_last_index",
    "fmod",
    "count_include_pad",
    "training_mode",
];

fn extent() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -4i64..9, 1 => Just(i64::MAX), 1 => Just(i64::MIN), 1 => Just(1 << 40), 1 => Just(-(1 << 40))]
}

fn attribute() -> impl Strategy<Value = Attribute> {
    let text = prop_oneof![
        Just("SAME_UPPER"),
        Just("VALID"),
        Just("none"),
        Just("sum"),
        Just("reflect"),
        Just("edge"),
        Just("wrap"),
        Just("CRD"),
        Just("ij,jk->ik"),
        Just("...ii->...i"),
        Just("bij,bjk->bik"),
        Just("i,i->"),
        Just("->"),
        Just(".a,"),
        Just("tanh"),
        Just("")
    ];
    prop_oneof![
        4 => extent().prop_map(Attribute::Int),
        4 => prop::collection::vec(extent(), 0..6).prop_map(Attribute::Ints),
        1 => any::<f32>().prop_map(Attribute::Float),
        3 => text.prop_map(|s| Attribute::String(s.into())),
        1 => extent().prop_map(|i| Attribute::Tensor { elem: Elem::I64, shape: vec![1], bytes: i.to_le_bytes().to_vec() }),
        1 => Just(Attribute::Tensor { elem: Elem::F32, shape: vec![1 << 40, 3], bytes: vec![0; 12] }),
    ]
}

#[derive(Clone, Debug)]
enum Source {
    Absent,
    Input(DType, Vec<u64>),
    Ints(Vec<i64>),
    Floats(Vec<u64>),
}

fn source() -> impl Strategy<Value = Source> {
    let dtype =
        prop_oneof![5 => Just(DType::F32), 1 => Just(DType::Bf16), 2 => Just(DType::I64), 1 => Just(DType::I32), 1 => Just(DType::Bool)];
    let shape = || prop::collection::vec(prop_oneof![9 => 0u64..5, 1 => Just(1u64 << 33)], 0..6);
    let small = prop::collection::vec(0u64..4, 0..5);
    let image = prop_oneof![Just(vec![1, 4, 4, 4]), Just(vec![4, 2, 3, 3]), Just(vec![4]), Just(vec![2, 4, 6]), Just(vec![2, 4])];
    prop_oneof![
        1 => Just(Source::Absent),
        4 => (dtype.clone(), shape()).prop_map(|(d, s)| Source::Input(d, s)),
        4 => (dtype, image).prop_map(|(d, s)| Source::Input(d, s)),
        5 => prop::collection::vec(extent(), 0..6).prop_map(Source::Ints),
        1 => extent().prop_map(|i| Source::Ints(vec![i])),
        2 => small.prop_map(Source::Floats),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_operands_or_attributes_make_lowering_panic(
        op in 0..accepted().len(),
        opset in 13i64..24,
        sources in prop::collection::vec(source(), 0..6),
        attributes in prop::collection::btree_map(prop::sample::select(ATTRIBUTES), attribute(), 0..5),
        outputs in 0usize..5,
    ) {
        let mut l = lowering(opset);
        let mut inputs = vec![];
        for (i, source) in sources.iter().enumerate() {
            let name = format!("in{i}");
            match source {
                Source::Absent => {}
                Source::Input(dtype, shape) => input(&mut l, &name, *dtype, shape),
                Source::Ints(list) => constant(&mut l, &name, ConstData::i64([list.len() as u64], list)),
                Source::Floats(shape) => {
                    let n = shape.iter().product::<u64>() as usize;
                    constant(&mut l, &name, ConstData::f32(shape.clone(), &vec![1.5; n]));
                }
            }
            inputs.push(if matches!(source, Source::Absent) { String::new() } else { name });
        }
        let attributes = attributes.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let outputs = (0..outputs).map(|i| format!("out{i}")).collect();
        let n = ModelNode { op: accepted()[op].into(), name: "n".into(), inputs, outputs, attributes, ..Default::default() };
        if let Err(gap) = l.node(&n) {
            prop_assert!(!gap.reason.is_empty());
        }
    }
}
