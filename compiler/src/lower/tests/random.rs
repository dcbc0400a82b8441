//! Random graphs of maps, views, reductions and products.

use super::*;
use proptest::prelude::*;

/// One drawn step: what to do, and to which of the values so far.
type Draw = (u8, u8, u8);

fn step(c: &mut Case, values: &mut Vec<ValueId>, (what, first, second): Draw) {
    let x = values[first as usize % values.len()];
    let y = values[second as usize % values.len()];
    let shape = c.graph.ty(x).shape.clone();
    let rank = shape.len();
    let v = match what % 12 {
        0 => c.unary([Unary::Exp, Unary::Tanh, Unary::Neg, Unary::Sigmoid][second as usize % 4], x),
        1 | 2 => {
            if infer::broadcast([shape.as_slice(), c.graph.ty(y).shape.as_slice()].into_iter()).is_err() {
                return;
            }
            let op = [Binary::Add, Binary::Mul, Binary::Sub][second as usize % 3];
            let dtype = c.graph.ty(x).dtype;
            c.one(Op::Map(Expr::binary(op), dtype), &[x, y])
        }
        3 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.rotate_left(second as usize % rank.max(1));
            c.transpose(&perm, x)
        }
        4 if rank > 1 => {
            let at = second as usize % (rank - 1);
            let mut to = shape.clone();
            let extent = to.remove(at);
            to[at] *= extent;
            c.reshape(&to, x)
        }
        5 => {
            let to: Vec<u64> = shape.iter().flat_map(|&e| if e % 2 == 0 && e > 2 && rank < 4 { vec![e / 2, 2] } else { vec![e] }).collect();
            c.reshape(&to, x)
        }
        6 => {
            let d = second as usize % rank;
            let mut sizes = shape.clone();
            sizes[d] = sizes[d].div_ceil(2);
            let (mut starts, mut steps) = (vec![0; rank], vec![1; rank]);
            starts[d] = (shape[d] - sizes[d]) as i64;
            if second % 2 == 1 {
                (starts[d], steps[d]) = (shape[d] as i64 - 1, -1);
            }
            c.one(Op::Slice { starts, steps, sizes }, &[x])
        }
        7 => {
            let d = second as usize % rank;
            let (mut low, mut high) = (vec![0; rank], vec![0; rank]);
            (low[d], high[d]) = (1, 1 + second as u64 % 2);
            c.one(Op::Pad { low, high }, &[x])
        }
        8 => c.reduce([Fold::Sum, Fold::Max][second as usize % 2], &[first as usize % rank], x),
        9 => {
            let axes: Vec<usize> = (0..rank).filter(|d| (second as usize >> d) & 1 == 1).collect();
            c.reduce(Fold::Sum, &axes, x)
        }
        10 => {
            let (a, b) = (c.graph.ty(x).clone(), c.graph.ty(y).clone());
            let d = second as usize % rank;
            let fits = a.dtype == b.dtype && a.rank() == b.rank() && (0..rank).all(|i| i == d || a.shape[i] == b.shape[i]);
            if !fits {
                return;
            }
            c.one(Op::Concat { axis: d }, &[x, y])
        }
        11 if rank == 2 => c.matmul(false, true, x, x),
        _ => c.one(Op::Softmax { log: false }, &[x]),
    };
    if c.graph.ty(v).elements() <= 4096 && c.graph.ty(v).rank() <= 5 {
        values.push(v);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn lowered_graphs_compute_what_the_interpreter_does(
        draws in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..14),
        shape in prop::collection::vec(1u64..7, 1..4),
        bf16 in any::<bool>(),
        keep in any::<u8>(),
    ) {
        let mut c = Case::new();
        let x = c.input(if bf16 { DType::Bf16 } else { DType::F32 }, &shape);
        let y = c.input(DType::F32, &shape[shape.len() - 1..]);
        let mut values = vec![x, y];
        draws.into_iter().for_each(|d| step(&mut c, &mut values, d));
        let last = values.len() - 1;
        c.output(values[last]);
        c.output(values[keep as usize % values.len()]);
        let expected = c.expected(&c.graph);
        let sane = |t: &Tensor| t.floats().is_ok_and(|v| v.iter().all(|x| x.abs() < 1e4));
        prop_assume!(expected.iter().all(sane));
        // A back end may order a sum by how its operands lie, which fusion changes.
        let sums = |n: &Node| matches!(n.op, Op::Reduce { op: Fold::Sum, .. } | Op::Softmax { .. } | Op::Matmul { .. });
        c.check_graph(&c.graph, !c.graph.nodes.iter().any(sums));
    }
}
