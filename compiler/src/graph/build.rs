//! Adding nodes to a graph.

use super::*;
use crate::Error;

impl Graph {
    /// Appends a node and returns its results.
    ///
    /// # Errors
    /// What [`Op::infer`] says of the inputs' types.
    pub fn add(&mut self, op: Op, inputs: &[ValueId], from: &Provenance) -> Result<Vec<ValueId>, Error> {
        let types: Vec<&TensorType> = inputs.iter().map(|&v| self.ty(v)).collect();
        let results = op.infer(&types, &self.parameters).map_err(|reason| Error::graph(&from.site, reason))?;
        let node = NodeId(self.nodes.len() as u32);
        let first = self.values.len() as u32;
        let ids: Vec<ValueId> = (0..results.len() as u32).map(|i| ValueId(first + i)).collect();
        self.values.extend(results.into_iter().enumerate().map(|(i, ty)| Value { ty, node, result: i as u32 }));
        let (pass, origin, site) = (from.pass, from.origin.unwrap_or(node), from.site.clone());
        self.nodes.push(Node { op, inputs: inputs.to_vec(), results: ids.clone(), pass, origin, site });
        Ok(ids)
    }

    /// Appends a node of the forward pass and returns its results.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn add_forward(&mut self, op: Op, inputs: &[ValueId], site: &Arc<str>) -> Result<Vec<ValueId>, Error> {
        self.add(op, inputs, &Provenance::forward(site))
    }

    /// Where a node comes from, for a node of the same graph that stands beside it.
    pub fn provenance(&self, n: NodeId) -> Provenance {
        let node = self.node(n);
        Provenance { pass: node.pass, origin: (node.origin != n).then_some(node.origin), site: node.site.clone() }
    }

    /// Appends a source whose type is not inferred from the operator.
    pub fn add_source(&mut self, op: Op, ty: TensorType, site: &Arc<str>) -> ValueId {
        debug_assert!(op.is_source());
        let (node, id) = (NodeId(self.nodes.len() as u32), ValueId(self.values.len() as u32));
        self.values.push(Value { ty, node, result: 0 });
        self.nodes.push(Node { op, inputs: vec![], results: vec![id], pass: Pass::Fprop, origin: node, site: site.clone() });
        id
    }

    pub fn ty(&self, v: ValueId) -> &TensorType {
        &self.values[v.index()].ty
    }

    pub fn node(&self, n: NodeId) -> &Node {
        &self.nodes[n.index()]
    }

    /// The node that defines a value.
    pub fn def(&self, v: ValueId) -> &Node {
        self.node(self.values[v.index()].node)
    }

    /// The data of a constant, if the value is one.
    pub fn constant(&self, v: ValueId) -> Option<&Arc<ConstData>> {
        match &self.def(v).op {
            Op::Constant(data) => Some(data),
            _ => None,
        }
    }
}

impl ConstData {
    pub fn f32(shape: impl Into<Vec<u64>>, data: &[f32]) -> Self {
        ConstData { ty: TensorType::new(DType::F32, shape), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    pub fn i64(shape: impl Into<Vec<u64>>, data: &[i64]) -> Self {
        ConstData { ty: TensorType::new(DType::I64, shape), bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// The elements as f32, whatever the storage.
    pub fn to_f32(&self) -> Vec<f32> {
        let b = &self.bytes;
        match self.ty.dtype {
            DType::F32 => b.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            DType::Bf16 => b.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
            DType::E4m3 => b.iter().map(|&c| fp8c_kernels::numerics::e4m3_to_f32(c)).collect(),
            _ => self.to_i64().into_iter().map(|i| i as f32).collect(),
        }
    }

    /// The elements as i64; floats truncate.
    pub fn to_i64(&self) -> Vec<i64> {
        let b = &self.bytes;
        match self.ty.dtype {
            DType::I64 => b.chunks_exact(8).map(|c| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])).collect(),
            DType::I32 => b.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]) as i64).collect(),
            DType::Bool => b.iter().map(|&c| (c != 0) as i64).collect(),
            _ => self.to_f32().into_iter().map(|x| x as i64).collect(),
        }
    }
}
