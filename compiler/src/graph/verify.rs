//! The checks behind [`Graph::verify`].

use super::*;
use crate::Error;
use std::collections::HashSet;

impl Graph {
    /// Checks the invariants of the module's documentation.
    ///
    /// # Errors
    /// [`Error::Verify`] for the first one that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        let fail = |reason| Error::Verify { pass: "graph", reason };
        self.definitions().and_then(|()| self.types()).map_err(fail)?;
        self.sources().and_then(|()| self.aliases()).and_then(|()| self.results()).map_err(fail)
    }

    fn name(&self, n: usize) -> String {
        format!("node {n} ({})", self.nodes[n].site)
    }

    /// Invariants 1, 5 and 6.
    fn definitions(&self) -> Result<(), String> {
        let mut defined = vec![false; self.values.len()];
        let mut epoch = Epoch::Forward;
        for (n, node) in self.nodes.iter().enumerate() {
            if node.epoch() < epoch {
                return Err(format!("{} runs in an earlier epoch than the node before it", self.name(n)));
            }
            epoch = node.epoch();
            if let Some(v) = node.inputs.iter().find(|v| !defined.get(v.index()).copied().unwrap_or(false)) {
                return Err(format!("{} reads value {} before it is defined", self.name(n), v.0));
            }
            for (i, v) in node.results.iter().enumerate() {
                let value =
                    self.values.get(v.index()).ok_or_else(|| format!("{} defines value {}, which is not there", self.name(n), v.0))?;
                if std::mem::replace(&mut defined[v.index()], true) {
                    return Err(format!("{} defines value {} again", self.name(n), v.0));
                }
                if value.node != NodeId(n as u32) || value.result != i as u32 {
                    return Err(format!("value {} does not name {} as its definition", v.0, self.name(n)));
                }
            }
            self.origin(n)?;
        }
        match defined.iter().position(|d| !d) {
            Some(v) => Err(format!("value {v} is never defined")),
            None => Ok(()),
        }
    }

    /// Invariant 6.
    fn origin(&self, n: usize) -> Result<(), String> {
        let (node, own) = (&self.nodes[n], NodeId(n as u32));
        let value = |o: NodeId| o < own && self.nodes[o.index()].pass.gives_values();
        match node.origin == own || (!node.pass.gives_values() && value(node.origin)) {
            true => Ok(()),
            false => Err(format!("{} has the origin {}, which is no node that gives values", self.name(n), node.origin.0)),
        }
    }

    /// Invariant 2.
    fn types(&self) -> Result<(), String> {
        for (n, node) in self.nodes.iter().enumerate() {
            let results: Vec<&TensorType> = node.results.iter().map(|&v| self.ty(v)).collect();
            if let Op::Input { .. } = node.op {
                if results.len() != 1 || !node.inputs.is_empty() {
                    return Err(format!("{} is an input with inputs", self.name(n)));
                }
                continue;
            }
            let inputs: Vec<&TensorType> = node.inputs.iter().map(|&v| self.ty(v)).collect();
            let inferred = node.op.infer(&inputs, &self.parameters).map_err(|e| format!("{} {e}", self.name(n)))?;
            if inferred.iter().collect::<Vec<_>>() != results {
                return Err(format!("{} has results {results:?}, but its inputs give {inferred:?}", self.name(n)));
            }
            if let Op::Constant(data) = &node.op
                && data.bytes.len() as u64 != data.ty.bytes()
            {
                return Err(format!("{} holds {} bytes for {:?}", self.name(n), data.bytes.len(), data.ty));
            }
        }
        Ok(())
    }

    /// Invariant 3.
    fn sources(&self) -> Result<(), String> {
        let (mut names, mut seen) = (HashSet::new(), HashSet::new());
        if let Some(p) = self.parameters.iter().find(|p| !names.insert(p.name.as_str())) {
            return Err(format!("two parameters have the name {}", p.name));
        }
        let mut inside = false;
        for (n, node) in self.nodes.iter().enumerate() {
            if !node.op.is_source() {
                inside = true;
                continue;
            }
            if inside {
                return Err(format!("{} is a source after the first operator", self.name(n)));
            }
            let own = match &node.op {
                Op::Input { name } => names.insert(name),
                Op::Constant(_) => true,
                op => seen.insert(op),
            };
            if !own || !node.inputs.is_empty() {
                return Err(format!("{} is a source that is there twice", self.name(n)));
            }
        }
        Ok(())
    }

    /// Invariant 4.
    fn aliases(&self) -> Result<(), String> {
        let mut replaced = HashSet::new();
        for (n, node) in self.nodes.iter().enumerate() {
            if let Some(v) = node.inputs.iter().find(|v| replaced.contains(*v)) {
                return Err(format!("{} reads value {}, which was replaced in place", self.name(n), v.0));
            }
            for (result, input) in node.op.aliases().iter().enumerate() {
                let Some(input) = input.map(|i| node.inputs[i]) else { continue };
                if self.ty(input) != self.ty(node.results[result]) {
                    return Err(format!("{} replaces value {} by one of another type", self.name(n), input.0));
                }
                if matches!(self.def(input).op, Op::Constant(_) | Op::Input { .. }) {
                    return Err(format!("{} replaces a constant or an input", self.name(n)));
                }
                if !replaced.insert(input) {
                    return Err(format!("{} replaces value {} twice", self.name(n), input.0));
                }
            }
        }
        let kept = self.outputs.iter().map(|o| o.value).chain(self.loss);
        match kept.filter(|v| v.index() < self.values.len()).find(|v| replaced.contains(v)) {
            Some(v) => Err(format!("value {} is a result of the graph, but was replaced in place", v.0)),
            None => Ok(()),
        }
    }

    fn results(&self) -> Result<(), String> {
        let there = |v: ValueId| v.index() < self.values.len();
        if let Some(o) = self.outputs.iter().find(|o| !there(o.value)) {
            return Err(format!("output {} is not there", o.name));
        }
        if let Some(loss) = self.loss
            && !(there(loss) && self.ty(loss).dtype == DType::F32 && self.ty(loss).elements() == 1)
        {
            return Err("the loss is no f32 scalar".into());
        }
        for g in &self.gradients {
            let of = self.parameters.get(g.parameter).ok_or("a gradient is of no parameter")?;
            if !there(g.value) || self.ty(g.value).shape != of.ty.shape {
                return Err(format!("the gradient of {} has another shape than it", of.name));
            }
        }
        Ok(())
    }
}
