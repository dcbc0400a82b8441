//! What the graph says of the values that an integer input may have.
//!
//! Found once the model is lowered and before composites are made, and carried in the plan: `range` is what indexing implies, `labels`
//! which tokens a language model's loss wants.

mod labels;
mod range;

pub use range::Range;

use crate::graph::{Graph, Op};
use fp8c_kernels::DType;
use fp8c_runtime::plan::Labels;

/// What is known of one input of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFacts {
    pub name: String,
    /// Absent where values outside of it may be meant.
    pub range: Option<Range>,
    /// For labels of tokens; absent where the graph does not tell.
    pub labels: Option<Labels>,
}

/// What is known of the integer inputs of a forward graph.
pub fn facts(graph: &Graph) -> Vec<InputFacts> {
    let ranges = range::ranges(graph);
    // ONNX lets an index count from the end. In what a training reads from a file, -1 is a mistake.
    let trained = |r: Range| Range { least: if graph.loss.is_some() { r.least.max(0) } else { r.least }, ..r };
    let inputs = graph.nodes.iter().filter_map(|n| if let Op::Input { name } = &n.op { Some((name, n.results[0])) } else { None });
    let integers = inputs.filter(|(_, v)| matches!(graph.ty(*v).dtype, DType::I64 | DType::I32));
    let fact = |(name, v): (&String, _)| InputFacts {
        name: name.clone(),
        range: ranges.get(&v).map(|r| trained(*r)),
        labels: if name == "labels" { labels::wanted(graph, v) } else { None },
    };
    integers.map(fact).collect()
}

/// What the user should know about the labels of a language model that is trained.
pub fn note(graph: &Graph, facts: &[InputFacts]) -> Option<String> {
    let labels = facts.iter().find(|f| f.name == "labels")?;
    labels::tokens(graph)?;
    Some(match labels.labels {
        Some(Labels::Next) => "the loss compares each position with the label at it: from a token file, labels are the next tokens".into(),
        Some(Labels::Same) => {
            "the loss compares each position with the label after it: from a token file, labels are the tokens themselves".into()
        }
        None => "the graph does not show which tokens its labels are: on a token file, train with --labels next or --labels same".into(),
    })
}

#[cfg(test)]
mod tests;
