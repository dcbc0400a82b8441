//! What passes need to change a graph: users, selection with renumbering, dead code, rewriting with a value map.

use super::*;
use crate::Error;

/// Where the values of a graph went when another was made from it; `None` where one has no counterpart.
#[derive(Clone, Debug, Default)]
pub struct ValueMap(Vec<Option<ValueId>>);

impl ValueMap {
    fn new(values: usize) -> Self {
        ValueMap(vec![None; values])
    }

    pub fn get(&self, v: ValueId) -> Option<ValueId> {
        self.0.get(v.index()).copied().flatten()
    }

    fn set(&mut self, from: ValueId, to: ValueId) {
        self.0[from.index()] = Some(to);
    }
}

impl Graph {
    /// The nodes that read each value, in order, each once; indexed by value.
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut users: Vec<Vec<NodeId>> = vec![vec![]; self.values.len()];
        for (n, node) in self.nodes.iter().enumerate() {
            for v in &node.inputs {
                let of = &mut users[v.index()];
                if of.last() != Some(&NodeId(n as u32)) {
                    of.push(NodeId(n as u32));
                }
            }
        }
        users
    }

    /// For each value: whether no input reaches it, so that parameters and constants alone make it.
    pub fn parameter_side(&self) -> Vec<bool> {
        let mut side = vec![false; self.values.len()];
        for node in &self.nodes {
            let of = !matches!(node.op, Op::Input { .. }) && node.inputs.iter().all(|v| side[v.index()]);
            node.results.iter().for_each(|v| side[v.index()] = of);
        }
        side
    }

    /// Keeps the named nodes, in the given order, and numbers nodes and values anew. Outputs, loss and gradients follow their values.
    ///
    /// # Errors
    /// [`Error::Verify`] when a kept node or a result of the graph reads what is not kept before it, or an origin is dropped.
    pub fn select(&self, order: &[NodeId]) -> Result<(Graph, ValueMap), Error> {
        let mut rewrite = Rewrite::new(self);
        for &n in order {
            rewrite.copy(n)?;
        }
        rewrite.finish()
    }

    /// Moves sources to the front, the rest keeping its order.
    ///
    /// # Errors
    /// As [`Graph::select`].
    pub fn sources_first(&self) -> Result<(Graph, ValueMap), Error> {
        let (sources, rest): (Vec<NodeId>, Vec<NodeId>) =
            (0..self.nodes.len() as u32).map(NodeId).partition(|&n| self.node(n).op.is_source());
        self.select(&[sources, rest].concat())
    }

    /// Drops nodes that nothing needs, and moves sources to the front. Inputs and parameters stay, and so do updates, and the origin of
    /// what stays.
    ///
    /// # Errors
    /// As [`Graph::select`].
    pub fn without_dead_code(&self) -> Result<(Graph, ValueMap), Error> {
        let mut live = vec![false; self.nodes.len()];
        let roots = self.outputs.iter().map(|o| o.value).chain(self.loss).chain(self.gradients.iter().map(|g| g.value));
        roots.for_each(|v| live[self.values[v.index()].node.index()] = true);
        for n in (0..self.nodes.len()).rev() {
            let node = &self.nodes[n];
            live[n] |= matches!(node.op, Op::Input { .. } | Op::Parameter(_)) || !node.op.aliases().is_empty();
            if live[n] {
                live[node.origin.index()] = true;
                node.inputs.iter().for_each(|v| live[self.values[v.index()].node.index()] = true);
            }
        }
        let kept = (0..self.nodes.len() as u32).map(NodeId).filter(|n| live[n.index()]);
        let (sources, rest): (Vec<NodeId>, Vec<NodeId>) = kept.partition(|&n| self.node(n).op.is_source());
        self.select(&[sources, rest].concat())
    }
}

/// A graph being made from another: nodes are copied, replaced, or left out and their results given other values.
///
/// What is added belongs to the node begun last: it gets that node's pass and site, and the counterpart of its origin.
pub struct Rewrite<'a> {
    from: &'a Graph,
    to: Graph,
    map: ValueMap,
    at: NodeId,
    /// For each node of `to`: the node of `from` that it was added for.
    made_for: Vec<NodeId>,
}

impl<'a> Rewrite<'a> {
    pub fn new(from: &'a Graph) -> Self {
        let to = Graph { parameters: from.parameters.clone(), ..Graph::default() };
        Rewrite { from, to, map: ValueMap::new(from.values.len()), at: NodeId(0), made_for: vec![] }
    }

    /// The new graph as far as it is made.
    pub fn graph(&self) -> &Graph {
        &self.to
    }

    /// The node of the old graph that a node of the new one was added for.
    pub fn made_for(&self, n: NodeId) -> NodeId {
        self.made_for[n.index()]
    }

    /// The new graph's counterpart of a value.
    ///
    /// # Errors
    /// [`Error::Verify`] when it has none yet.
    pub fn get(&self, v: ValueId) -> Result<ValueId, Error> {
        let missing = || Error::Verify { pass: "rewrite", reason: format!("value {} is read but was dropped", v.0) };
        self.map.get(v).ok_or_else(missing)
    }

    /// States that `to`, of the new graph, stands for `from` of the old one.
    pub fn set(&mut self, from: ValueId, to: ValueId) {
        self.map.set(from, to);
    }

    /// Starts on a node of the old graph: what is added next is made for it.
    pub fn begin(&mut self, n: NodeId) {
        self.at = n;
    }

    /// Adds a node for the one begun last.
    ///
    /// # Errors
    /// What [`Graph::add`] says; [`Error::Verify`] when the origin was dropped.
    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, Error> {
        let node = self.from.node(self.at);
        let origin = match node.origin == self.at {
            true => None,
            false => Some(self.to.values[self.get(self.from.node(node.origin).results[0])?.index()].node),
        };
        self.add_as(op, inputs, Provenance { pass: node.pass, origin, site: node.site.clone() }, self.at)
    }

    /// Adds a node for what a value of the new graph was made for, with the provenance that it has.
    ///
    /// # Errors
    /// What [`Graph::add`] says.
    pub fn add_beside(&mut self, v: ValueId, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, Error> {
        let n = self.to.values[v.index()].node;
        self.add_as(op, inputs, self.to.provenance(n), self.made_for(n))
    }

    /// Adds a node of the forward pass under a site.
    ///
    /// # Errors
    /// What [`Graph::add`] says.
    pub fn add_forward(&mut self, op: Op, inputs: &[ValueId], site: &Arc<str>) -> Result<Vec<ValueId>, Error> {
        self.add_as(op, inputs, Provenance::forward(site), self.at)
    }

    fn add_as(&mut self, op: Op, inputs: &[ValueId], provenance: Provenance, made_for: NodeId) -> Result<Vec<ValueId>, Error> {
        let results = self.to.add(op, inputs, &provenance)?;
        self.made_for.push(made_for);
        Ok(results)
    }

    /// Adds a source for the node begun last.
    pub fn add_source(&mut self, op: Op, ty: TensorType) -> ValueId {
        self.made_for.push(self.at);
        self.to.add_source(op, ty, &self.from.node(self.at).site)
    }

    /// Copies a node as it is.
    ///
    /// # Errors
    /// [`Error::Verify`] when an input was dropped; else what [`Graph::add`] says.
    pub fn copy(&mut self, n: NodeId) -> Result<(), Error> {
        self.begin(n);
        let node = self.from.node(n);
        let inputs = node.inputs.iter().map(|&v| self.get(v)).collect::<Result<Vec<_>, _>>()?;
        let results = match node.op.is_source() {
            true => vec![self.add_source(node.op.clone(), self.from.ty(node.results[0]).clone())],
            false => self.add(node.op.clone(), &inputs)?,
        };
        node.results.iter().zip(results).for_each(|(&from, to)| self.map.set(from, to));
        Ok(())
    }

    /// The new graph, with the old one's outputs, loss and gradients.
    ///
    /// # Errors
    /// [`Error::Verify`] when one of those has no counterpart.
    pub fn finish(mut self) -> Result<(Graph, ValueMap), Error> {
        let outputs = self.from.outputs.iter().map(|o| Ok(Output { name: o.name.clone(), value: self.get(o.value)? }));
        self.to.outputs = outputs.collect::<Result<_, Error>>()?;
        self.to.loss = self.from.loss.map(|v| self.get(v)).transpose()?;
        let gradients = self.from.gradients.iter().map(|g| Ok(Gradient { parameter: g.parameter, value: self.get(g.value)? }));
        self.to.gradients = gradients.collect::<Result<_, Error>>()?;
        Ok((self.to, self.map))
    }
}
