//! What PyTorch's exporter writes into a model's metadata: the signature of the exported program, and for each node the traced
//! (`fx`) node it comes from.

use super::model::{Model, ModelNode};
use std::collections::{HashMap, HashSet};

const SIGNATURE: &str = "pkg.torch.export.ExportedProgram.graph_signature";
const FX_NODE: &str = "pkg.torch.onnx.fx_node";
const NAME_SCOPES: &str = "pkg.torch.onnx.name_scopes";
const FOLDED_FROM: &str = "pkg.onnxscript.optimizer.folded_from";
const ORIGINAL_NAME: &str = "pkg.torch.onnx.original_node_name";

/// The parameters of an exported program, in `named_parameters` order (tied ones under each of their names).
#[derive(Debug, Default)]
pub struct Signature {
    pub parameters: Vec<SignatureParameter>,
    by_placeholder: HashMap<String, usize>,
    by_target: HashMap<String, usize>,
    /// Names of the program's inputs, parameters and buffers among them.
    inputs: HashSet<String>,
}

/// One parameter.
#[derive(Debug, PartialEq)]
pub struct SignatureParameter {
    /// The name in traced nodes, `p_m_fc_weight`.
    pub placeholder: String,
    /// The name in the module, `m.fc.weight`.
    pub target: String,
}

impl SignatureParameter {
    /// The module that owns it, `m.fc`, and its name there, `weight`.
    pub fn owner(&self) -> (&str, &str) {
        self.target.rsplit_once('.').unwrap_or(("", &self.target))
    }
}

impl Signature {
    /// The signature in a model's metadata.
    pub fn of(model: &Model) -> Option<Self> {
        let text = model.metadata.get(SIGNATURE)?;
        let mut found = Signature::default();
        // One line an input (PyTorch 2.7 and later), or one record an input in a line of Python (before).
        let records = if text.contains("InputSpec(") { text.split("InputSpec(").collect::<Vec<_>>() } else { text.lines().collect() };
        for record in records {
            let placeholder = between(record, "name='", "'").or_else(|| record.split_once(": ").map(|(name, _)| name.trim()));
            let Some(placeholder) = placeholder else { continue };
            found.inputs.insert(placeholder.to_string());
            if let Some(target) = between(record, "target='", "'").filter(|_| record.contains("PARAMETER")) {
                let id = found.parameters.len();
                found.by_placeholder.insert(placeholder.to_string(), id);
                found.by_target.insert(target.to_string(), id);
                found.parameters.push(SignatureParameter { placeholder: placeholder.into(), target: target.into() });
            }
        }
        (!found.parameters.is_empty()).then_some(found)
    }

    /// The parameter that a traced node calls by this name.
    pub fn placeholder(&self, name: &str) -> Option<usize> {
        self.by_placeholder.get(name).copied()
    }

    /// True for the name of an input of the program.
    pub fn is_input(&self, name: &str) -> bool {
        self.inputs.contains(name)
    }

    /// The parameter of this name in the module.
    pub fn target(&self, name: &str) -> Option<usize> {
        self.by_target.get(name).copied()
    }

    /// The one parameter that an initializer holds or was computed from, if it is one.
    pub fn root(&self, model: &Model, initializer: &str) -> Option<usize> {
        let about = model.value_metadata.get(initializer);
        let original = about.and_then(|m| m.get(ORIGINAL_NAME)).and_then(|name| self.placeholder(name));
        original.or_else(|| self.target(initializer)).or_else(|| {
            let names = python_list(about?.get(FOLDED_FROM)?);
            let mut parameters = names.iter().filter_map(|n| self.target(n));
            parameters.next().filter(|_| parameters.next().is_none())
        })
    }
}

/// A traced operator application.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FxNode {
    /// `linear_1`
    pub result: String,
    /// `aten.linear`
    pub target: String,
    /// The names in each positional argument; those in keyword arguments follow.
    pub args: Vec<Vec<String>>,
    /// The positional arguments that are whole numbers.
    numbers: Vec<Option<i64>>,
}

impl FxNode {
    /// The traced node that an ONNX node comes from.
    pub fn of(node: &ModelNode) -> Option<Self> {
        Self::parse(node.metadata.get(FX_NODE)?)
    }

    /// Reads `%r : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%x, %p_w), kwargs = {})`.
    fn parse(text: &str) -> Option<Self> {
        let result = text.trim_start().strip_prefix('%')?.split([' ', ':']).next()?.to_string();
        let target = between(text, "[target=", "]").unwrap_or_default();
        let target = target.strip_prefix("torch.ops.").unwrap_or(target);
        let target = target.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        let (_, args) = text.split_once("(args = (")?;
        let (mut depth, mut list, mut numbers, mut start) = (1usize, vec![], vec![], 0);
        for (i, c) in args.char_indices() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth > 1 => depth -= 1,
                ')' | ',' if depth == 1 => {
                    list.push(references(&args[start..i]));
                    numbers.push(args[start..i].trim().parse().ok());
                    start = i + 1;
                    if c == ')' {
                        break;
                    }
                }
                _ => {}
            }
        }
        list.push(references(&args[start.min(args.len())..]));
        Some(FxNode { result, target, args: list, numbers })
    }

    /// The row of an embedding's table that gets no gradient from it.
    pub fn padding_row(&self) -> Option<i64> {
        let row = self.numbers.get(2).copied().flatten();
        row.filter(|&row| self.target == "aten.embedding" && row >= 0)
    }

    /// All names that it reads.
    pub fn reads(&self) -> impl Iterator<Item = &str> {
        self.args.iter().flatten().map(String::as_str)
    }
}

/// The names after `%`.
fn references(text: &str) -> Vec<String> {
    let name = |part: &str| part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    text.split('%').skip(1).map(name).collect()
}

/// The operator part of a traced name: `layer_norm` of `layer_norm_3`.
pub fn base(name: &str) -> &str {
    match name.rsplit_once('_') {
        Some((base, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => name,
    }
}

/// The module that a node was traced in, `m.layers.0.mlp`.
pub fn module(node: &ModelNode) -> Option<String> {
    let mut scopes = python_list(node.metadata.get(NAME_SCOPES)?);
    scopes.pop();
    scopes.pop()
}

/// The items of a list of strings as Python prints it.
fn python_list(text: &str) -> Vec<String> {
    let mut out = vec![];
    let mut rest = text;
    while let Some(at) = rest.find(['\'', '"']) {
        let quote = &rest[at..=at];
        let Some(end) = rest[at + 1..].find(quote) else { break };
        out.push(rest[at + 1..at + 1 + end].to_string());
        rest = &rest[at + 2 + end..];
    }
    out
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traced_nodes_parse_with_nested_and_keyword_arguments() {
        let text = "%cat_2 : [num_users=1] = call_function[target=torch.ops.aten.cat.default](args = ([%neg, %slice_4], -1, %p_w), kwargs = {out: %p_b})";
        let fx = FxNode::parse(text).unwrap();
        assert_eq!((fx.result.as_str(), fx.target.as_str()), ("cat_2", "aten.cat"));
        let names: Vec<Vec<&str>> = fx.args.iter().map(|a| a.iter().map(String::as_str).collect()).collect();
        assert_eq!(names, [vec!["neg", "slice_4"], vec![], vec!["p_w"], vec!["p_b"]]);
        assert_eq!((fx.numbers, FxNode::parse("nonsense")), (vec![None, Some(-1), None], None));
    }

    #[test]
    fn both_forms_of_the_signature_are_read() {
        let lines = "\n# inputs\np_m_w: PARAMETER target='m.w'\nb_m_t: BUFFER target='m.t' persistent=False\nx: USER_INPUT\n";
        let record = "ExportGraphSignature(input_specs=[InputSpec(kind=<InputKind.PARAMETER: 2>, arg=TensorArgument(name='p_m_w'), \
                      target='m.w', persistent=None), InputSpec(kind=<InputKind.USER_INPUT: 1>, arg=TensorArgument(name='x'), target=None)])";
        for text in [lines, record] {
            let mut model = Model::default();
            model.metadata.insert(SIGNATURE.into(), text.into());
            let signature = Signature::of(&model).unwrap();
            assert_eq!(signature.parameters, [SignatureParameter { placeholder: "p_m_w".into(), target: "m.w".into() }]);
        }
    }

    #[test]
    fn traced_names_lose_their_number() {
        assert_eq!((base("layer_norm_3"), base("add"), base("_to_copy_1"), base("p_w_")), ("layer_norm", "add", "_to_copy", "p_w_"));
    }
}
