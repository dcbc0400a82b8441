//! Every derivative against central differences, in f64.

mod composites;
mod core;
mod joint;
mod maps;
mod training;

use super::*;
use crate::graph::eval::{Rounding, Tensor, run};
use fp8c_kernels::program::{Binary, Fold};
use fp8c_runtime::plan::Control;
use std::sync::Arc;

/// A forward graph under construction, with the values of its parameters.
struct Case {
    graph: Graph,
    values: Vec<Tensor>,
    random: u64,
}

impl Case {
    fn new() -> Self {
        Case { graph: Graph::default(), values: vec![], random: 1 }
    }

    /// A number in [0, 1), from a linear congruential generator.
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 40) as f64 / (1u64 << 24) as f64
    }

    fn random(&mut self, n: u64, low: f64, high: f64) -> Vec<f64> {
        // Exact in f32, so that constants and parameters agree in both.
        (0..n).map(|_| (low + (high - low) * self.uniform()) as f32 as f64).collect()
    }

    /// A parameter of these values.
    fn parameter(&mut self, shape: &[u64], values: Vec<f64>, trainable: bool) -> ValueId {
        let index = self.graph.parameters.len();
        let ty = TensorType::new(DType::F32, shape);
        let name = format!("p{index}");
        let site = name.as_str().into();
        self.graph.parameters.push(Parameter {
            source: name.clone(),
            name,
            trainable,
            outside_perm: None,
            init: Init::Zeros,
            ty: ty.clone(),
        });
        self.values.push(Tensor::float(shape, values));
        self.graph.add_source(Op::Parameter(index), ty, &site)
    }

    /// A trainable parameter of values between two bounds.
    fn between(&mut self, shape: &[u64], low: f64, high: f64) -> ValueId {
        let values = self.random(shape.iter().product(), low, high);
        self.parameter(shape, values, true)
    }

    /// A trainable parameter of values in [-1, 1).
    fn any(&mut self, shape: &[u64]) -> ValueId {
        self.between(shape, -1.0, 1.0)
    }

    fn constant(&mut self, data: ConstData) -> ValueId {
        let ty = data.ty.clone();
        self.graph.add_source(Op::Constant(Arc::new(data)), ty, &"constant".into())
    }

    fn ints(&mut self, shape: &[u64], data: &[i64]) -> ValueId {
        self.constant(ConstData::i64(shape, data))
    }

    fn add(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.add_all(op, inputs)[0]
    }

    fn add_all(&mut self, op: Op, inputs: &[ValueId]) -> Vec<ValueId> {
        self.graph.add_forward(op, inputs, &"test".into()).unwrap()
    }

    /// Makes a loss of a value: its sum, weighted at random, so that no two elements count alike.
    fn loss_of(&mut self, y: ValueId) {
        let shape = self.graph.ty(y).shape.clone();
        let weights: Vec<f32> = self.random(shape.iter().product(), 0.5, 1.5).into_iter().map(|x| x as f32).collect();
        let weights = self.constant(ConstData::f32(shape.clone(), &weights));
        let weighted = self.add(Op::Map(Expr::binary(Binary::Mul), DType::F32), &[y, weights]);
        let sum = self.add(Op::Reduce { op: Fold::Sum, axes: (0..shape.len()).collect(), dtype: DType::F32 }, &[weighted]);
        let loss = self.add(Op::Reshape(vec![]), &[sum]);
        self.graph.loss = Some(loss);
        self.graph = self.graph.sources_first().unwrap().0;
        self.graph.verify().unwrap();
    }

    /// Every value of a graph with these parameters.
    fn values(&self, graph: &Graph, parameters: &[Tensor]) -> Vec<Tensor> {
        let sources = |node: &Node, ty: &TensorType| match node.op {
            Op::Parameter(p) => Some(parameters[p].clone()),
            Op::Control => Some(control(1.0)),
            Op::DecayOf(_) => Some(Tensor::float([1], vec![1.0])),
            Op::State { .. } => Some(Tensor::zeros(ty)),
            _ => None,
        };
        run(graph, &sources, Rounding::Exact).unwrap()
    }

    fn loss(&self, parameters: &[Tensor]) -> f64 {
        self.values(&self.graph, parameters)[self.graph.loss.unwrap().index()].floats().unwrap()[0]
    }

    /// Checks the gradient of every trainable parameter, for a loss made of `y`.
    fn check(mut self, y: ValueId) {
        self.loss_of(y);
        let joint = with_gradients(self.graph.clone(), self.graph.loss.unwrap(), false).unwrap();
        joint.verify().unwrap();
        let values = self.values(&joint, &self.values);
        let trainable: Vec<usize> = (0..self.values.len()).filter(|&p| self.graph.parameters[p].trainable).collect();
        assert_eq!(joint.gradients.iter().map(|g| g.parameter).collect::<Vec<_>>(), trainable, "parameters with a gradient");
        for g in &joint.gradients {
            assert_eq!(joint.ty(g.value), &joint.parameters[g.parameter].ty);
            let analytic = values[g.value.index()].floats().unwrap();
            for (i, &a) in analytic.iter().enumerate() {
                let numeric = self.central_difference(g.parameter, i);
                let close = (a - numeric).abs() <= 1e-6 * (1.0 + a.abs().max(numeric.abs()));
                assert!(close, "parameter {} element {i}: derivative {a}, central difference {numeric}", g.parameter);
            }
        }
    }

    fn central_difference(&self, parameter: usize, element: usize) -> f64 {
        let step = 1e-5;
        let at = |delta: f64| {
            let mut values = self.values.clone();
            let mut moved = values[parameter].floats().unwrap().to_vec();
            moved[element] += delta;
            values[parameter] = Tensor::float(values[parameter].shape.clone(), moved);
            self.loss(&values)
        };
        // Fourth order: the error is below 1e-12 where derivatives are near 1.
        (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step)
    }
}

/// A control block with a loss scale.
fn control(loss_scale: f64) -> Tensor {
    let mut control = vec![0.0; Control::LEN];
    control[Control::LOSS_SCALE] = loss_scale;
    Tensor::float([Control::LEN as u64], control)
}
