//! Runs ONNX's own operator tests, as `dump.py` writes them, through import and the reference interpreter.
//!
//! `cargo run --release -p fp8c-tests --example onnx_cases -- FOLDER [FILTER]` prints how many cases pass, are refused, are wrong, or
//! panic; with a filter, each case whose name contains it, with its reason. Operands that must be constant but are inputs in the test
//! (the shape of Reshape, ..) become constants, as exporters make them. Each case that passes is run again with its integers, and with
//! all its inputs, as constants, which exercises folding. Exit status 1 when anything is wrong or panics.

mod case;

use case::Case;
use fp8c::graph::eval::{Data, Rounding, Tensor, run};
use fp8c::graph::{ConstData, Graph, Init, Op, TensorType};
use fp8c::import::model::{Attribute, Dim, Elem, Model, ModelInput, ModelNode};
use fp8c::import::{ImportOptions, import_model};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

/// What became of a case.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    Pass,
    Refused(String),
    Wrong(String),
    Panic(String),
}

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(folder) = args.next() else {
        eprintln!("usage: onnx_cases FOLDER [FILTER]");
        std::process::exit(2);
    };
    let filter = args.next();
    let verdicts = run_all(Path::new(&folder), filter.as_deref().unwrap_or(""));
    report(&verdicts, filter.is_some());
    let bad = |v: &Verdict| matches!(v, Verdict::Wrong(_) | Verdict::Panic(_));
    std::process::exit(verdicts.iter().any(|(_, v)| bad(v)) as i32);
}

fn run_all(folder: &Path, filter: &str) -> Vec<(String, Verdict)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    paths.retain(|p| name(p).contains(filter));
    std::panic::set_hook(Box::new(|_| {}));
    let judge = |p: &PathBuf| {
        let verdict = std::panic::catch_unwind(AssertUnwindSafe(|| judge(p)));
        verdict.unwrap_or_else(|e| {
            let text = e.downcast_ref::<String>().cloned().or(e.downcast_ref::<&str>().map(|s| s.to_string()));
            Verdict::Panic(text.unwrap_or_default())
        })
    };
    paths.iter().map(|p| (name(p), judge(p))).collect()
}

fn judge(folder: &Path) -> Verdict {
    let refused = |e: fp8c::Error| Verdict::Refused(e.to_string().replace(&folder.display().to_string(), ""));
    let case = match Case::read(folder) {
        Ok(case) => case,
        Err(e) => return Verdict::Wrong(format!("the case cannot be read: {e}")),
    };
    let model = match fp8c::import::onnx::read(&folder.join("model.onnx")) {
        Ok(model) => model,
        Err(e) => return refused(e),
    };
    let mut verdict = Verdict::Pass;
    for inputs in [Inputs::Fed, Inputs::IntegersConstant, Inputs::Constant] {
        verdict = match imported(&model, &case, inputs) {
            Err(reason) if inputs == Inputs::Fed => Verdict::Refused(reason),
            // More constants must not be harder to import.
            Err(reason) => Verdict::Wrong(format!("{inputs:?}: refused: {reason}")),
            Ok(graph) => match compare(&graph, &case) {
                Ok(()) => continue,
                Err(reason) => Verdict::Wrong(format!("{inputs:?}: {reason}")),
            },
        };
        break;
    }
    verdict
}

/// Which of the case's inputs the model is fed at run time; the others are constants of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Inputs {
    Fed,
    IntegersConstant,
    Constant,
}

impl Inputs {
    fn constants(self, model: &Model) -> BTreeSet<String> {
        let constant = |i: &&ModelInput| match self {
            Inputs::Fed => false,
            Inputs::IntegersConstant => !i.elem.is_float(),
            Inputs::Constant => true,
        };
        model.inputs.iter().filter(constant).map(|i| i.name.clone()).collect()
    }
}

/// Imports the model for inference; inputs that must be constant are made so and the import is tried again.
fn imported(model: &Model, case: &Case, inputs: Inputs) -> Result<Graph, String> {
    let options = ImportOptions { infer: true, ..ImportOptions::default() };
    let mut constant = inputs.constants(model);
    loop {
        let gaps = match import_model(specialised(model, case, &constant)?, Path::new("model.onnx"), &options) {
            Ok(imported) => return Ok(imported.graph),
            Err(fp8c::Error::Unsupported { gaps }) => gaps,
            Err(e) => return Err(e.to_string()),
        };
        let before = constant.len();
        constant.extend(gaps.iter().filter(|g| g.contains("to be constant")).flat_map(|g| determining(model, g)));
        if constant.len() == before {
            return Err(gaps.join("; "));
        }
    }
}

/// The model with inputs of the case's shapes, and with constants in place of some of them.
fn specialised(model: &Model, case: &Case, constant: &BTreeSet<String>) -> Result<Model, String> {
    let mut model = model.clone();
    for input in std::mem::take(&mut model.inputs) {
        let value = case.inputs.iter().find(|v| v.name == input.name).and_then(|v| v.tensor.as_ref());
        let (elem, shape, bytes) = value.ok_or_else(|| format!("has the input {}, which is not a tensor", input.name))?;
        if !constant.contains(&input.name) {
            let shape = shape.iter().map(|&d| Dim::Known(d)).collect();
            model.inputs.push(ModelInput { shape, ..input });
            continue;
        }
        let value = Attribute::Tensor { elem: *elem, shape: shape.clone(), bytes: bytes.clone() };
        let attributes = BTreeMap::from([("value".to_string(), value)]);
        model.nodes.insert(0, ModelNode { op: "Constant".into(), outputs: vec![input.name], attributes, ..ModelNode::default() });
    }
    Ok(model)
}

/// The graph inputs that determine the operand a gap, "node (Op) needs .. (input 1)", complains of.
fn determining(model: &Model, gap: &str) -> Vec<String> {
    let at = gap.rsplit_once("(input ").and_then(|(_, i)| i.trim_end_matches(')').parse::<usize>().ok()).unwrap_or(0);
    let title = gap.split(" (").next().unwrap_or("");
    let node = model.nodes.iter().find(|n| n.name == title || n.outputs.first().is_some_and(|o| o == title));
    let mut open: Vec<String> = node.and_then(|n| n.inputs.get(at)).cloned().into_iter().collect();
    let mut found = vec![];
    while let Some(name) = open.pop() {
        match model.nodes.iter().find(|n| n.outputs.contains(&name)) {
            Some(n) => open.extend(n.inputs.iter().cloned()),
            None if model.inputs.iter().any(|i| i.name == name) => found.push(name),
            None => {}
        }
    }
    found
}

fn compare(graph: &Graph, case: &Case) -> Result<(), String> {
    let sources = |node: &fp8c::graph::Node, _: &TensorType| match &node.op {
        Op::Input { name } => case.inputs.iter().find(|v| v.name == *name)?.stored().as_ref().map(Tensor::from_const),
        Op::Parameter(p) => match &graph.parameters[*p].init {
            Init::Data(data) => Some(Tensor::from_const(data)),
            _ => None,
        },
        _ => None,
    };
    let values = run(graph, &sources, Rounding::Stored).map_err(|e| e.to_string())?;
    for (output, want) in graph.outputs.iter().zip(&case.outputs) {
        let (got, ty) = (&values[output.value.index()], graph.ty(output.value));
        let elem = want.tensor.as_ref().map_or(Elem::Other(0), |t| t.0);
        let want = want.stored().ok_or("expects a value that is not a tensor")?;
        if *ty != want.ty {
            return Err(format!("{} is {:?} {:?}, expected {:?} {:?}", output.name, ty.dtype, ty.shape, want.ty.dtype, want.ty.shape));
        }
        differs(got, &want, elem, case).map_err(|e| format!("{} {e}", output.name))?;
    }
    Ok(())
}

/// numpy's `allclose` with the case's tolerances; NaN equals NaN.
fn differs(got: &Tensor, want: &ConstData, elem: Elem, case: &Case) -> Result<(), String> {
    match &got.data {
        Data::Int(v) => match v.iter().zip(want.to_i64()).enumerate().find(|(_, (a, b))| **a != *b) {
            Some((i, (a, b))) => Err(format!("[{i}] is {a}, expected {b}")),
            None => Ok(()),
        },
        Data::Float(v) => {
            // The order of roundings is not part of an operator: two units in the last place of the expected format.
            let ulps = match elem {
                Elem::Bf16 => 1.0 / 64.0,
                Elem::F16 => 1.0 / 512.0,
                _ => 0.0,
            };
            let rtol = case.rtol.max(ulps);
            let close = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= case.atol + rtol * b.abs();
            match v.iter().zip(want.to_f32()).enumerate().find(|(_, (a, b))| !close(**a, *b as f64)) {
                Some((i, (a, b))) => Err(format!("[{i}] is {a}, expected {b}")),
                None => Ok(()),
            }
        }
    }
}

fn report(verdicts: &[(String, Verdict)], each: bool) {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, verdict) in verdicts {
        match verdict {
            _ if each => println!("{name}: {verdict:?}"),
            Verdict::Wrong(reason) => println!("wrong: {name}: {reason}"),
            Verdict::Panic(reason) => println!("panic: {name}: {reason}"),
            Verdict::Refused(reason) => reasons.entry(reason.clone()).or_default().push(name),
            Verdict::Pass => {}
        }
    }
    for (reason, names) in &reasons {
        println!("refused {:4} ({}..): {reason}", names.len(), names[0]);
    }
    let count = |f: fn(&Verdict) -> bool| verdicts.iter().filter(|(_, v)| f(v)).count();
    println!(
        "{} cases: {} pass, {} refused, {} wrong, {} panic",
        verdicts.len(),
        count(|v| *v == Verdict::Pass),
        count(|v| matches!(v, Verdict::Refused(_))),
        count(|v| matches!(v, Verdict::Wrong(_))),
        count(|v| matches!(v, Verdict::Panic(_)))
    );
}
