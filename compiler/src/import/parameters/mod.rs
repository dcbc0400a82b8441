//! Which initializers are parameters, and what PyTorch calls them.
//!
//! Exporters lose this: they merge initializers of equal value, fold transposes into weights, delete biases that are zero, and write
//! parameters and buffers alike. [`resolve`] undoes it, from PyTorch's own metadata where the model has it (`traced.rs`,
//! `restore.rs`), else from how initializers are used (`plain.rs`), and rewrites the model so that each parameter is one initializer
//! (`apply.rs`).

mod apply;
mod forms;
mod plain;
mod restore;
mod scripted;
mod traced;

use super::model::{Initializer, Model};
use super::torch::Signature;
use crate::graph::Init;
use crate::{Error, graph::ConstData};
use globset::{Glob, GlobSet, GlobSetBuilder};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Most elements of a constant that is written as a recipe.
const MAX_FILLED: u64 = 1 << 28;

/// What the command line says about parameters; globs match PyTorch's names and initializers' names.
#[derive(Clone, Debug, Default)]
pub struct ParameterOptions {
    /// Only these are trained; empty: every parameter.
    pub train: Vec<String>,
    /// These are not trained.
    pub freeze: Vec<String>,
    /// Equal initial values at several places are one parameter.
    pub tie: Vec<String>,
    /// Each place has a parameter of its own.
    pub untie: Vec<String>,
}

/// A parameter of the rewritten model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// PyTorch's name, or the initializer's.
    pub name: String,
    /// The initializer that holds it.
    pub initializer: String,
    /// `Some(perm)`: the initializer is the outside tensor transposed.
    pub outside_perm: Option<Vec<usize>>,
    pub trainable: bool,
}

/// One place where a node reads an initializer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Use {
    node: usize,
    input: usize,
}

/// How the tensor that a node reads is made from the parameter as PyTorch has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    Same,
    /// A matrix, transposed.
    Transposed,
    /// The elements of a vector in another shape.
    Reshaped,
    /// Repeated along the first axis, where the parameter has extent 1.
    Repeated,
    /// One added to each element.
    PlusOne,
    /// Rows of a table, looked up by constant indices.
    Rows,
}

/// What a use reads.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Binding {
    /// Index into [`Found::names`].
    parameter: usize,
    form: Form,
}

/// Parameters found in a model.
#[derive(Debug, Default)]
struct Found {
    names: Vec<String>,
    uses: BTreeMap<Use, Binding>,
    notes: Vec<String>,
}

/// Finds the parameters and rewrites the model so that each is an initializer of its own.
///
/// # Errors
/// [`Error::Usage`] for a glob that does not parse or matches nothing, [`Error::Model`] when a weight file cannot be read.
pub fn resolve(model: &mut Model, options: &ParameterOptions, notes: &mut Vec<String>) -> Result<Vec<ParameterSpec>, Error> {
    let globs = Globs::new(options)?;
    let mut found = match Signature::of(model) {
        _ if model.initializers.iter().any(|i| i.declared_parameter) => plain::declared(model),
        Some(signature) => traced::find(model, &signature),
        None => plain::find(model, &globs.untie, &globs.tie, &globs.train),
    };
    globs.check(model, &found)?;
    separate(model, &mut found, &globs.untie);
    merge(model, &mut found, &globs.tie);
    notes.append(&mut found.notes);
    let mut specs = apply::apply(model, &found, notes).map_err(|reason| Error::Model { path: model.name.clone(), reason })?;
    globs.select(&mut specs)?;
    Ok(specs)
}

struct Globs {
    train: GlobSet,
    freeze: GlobSet,
    tie: GlobSet,
    untie: GlobSet,
    train_all: bool,
    /// Every pattern with its flag: each must match something.
    used: Vec<(&'static str, Glob)>,
}

impl Globs {
    fn new(options: &ParameterOptions) -> Result<Self, Error> {
        let mut used = vec![];
        let mut set = |flag: &'static str, list: &[String]| {
            let mut builder = GlobSetBuilder::new();
            for pattern in list {
                let glob = Glob::new(pattern).map_err(|e| Error::Usage(format!("{flag} {pattern:?} is not a glob: {}", e.kind())))?;
                used.push((flag, glob.clone()));
                builder.add(glob);
            }
            builder.build().map_err(|e| Error::Usage(format!("{flag} cannot be used: {e}")))
        };
        let (train, freeze) = (set("--train", &options.train)?, set("--freeze", &options.freeze)?);
        let (tie, untie) = (set("--tie", &options.tie)?, set("--untie", &options.untie)?);
        Ok(Globs { train, freeze, tie, untie, train_all: options.train.is_empty(), used })
    }

    /// Refuses a pattern that matches none of these names.
    fn must_match(&self, flags: [&str; 2], names: &[&str]) -> Result<(), Error> {
        let idle = self.used.iter().filter(|(flag, _)| flags.contains(flag)).find(|(_, glob)| {
            let matcher = glob.compile_matcher();
            !names.iter().any(|name| matcher.is_match(name))
        });
        let Some((flag, glob)) = idle else { return Ok(()) };
        let near = fp8c_runtime::names::nearest(glob.glob(), names.iter().copied());
        Err(Error::Usage(format!("{flag} {:?} matches no parameter of the model{near}", glob.glob())))
    }

    /// `--tie` and `--untie` choose among what was found, by PyTorch's names and the file's.
    fn check(&self, model: &Model, found: &Found) -> Result<(), Error> {
        let read = found.uses.keys().map(|u| model.nodes[u.node].inputs[u.input].as_str());
        let names: Vec<&str> = found.names.iter().map(String::as_str).filter(|n| !n.is_empty()).chain(read).collect();
        self.must_match(["--tie", "--untie"], &names)
    }

    /// Says which parameters are trained.
    fn select(&self, specs: &mut [ParameterSpec]) -> Result<(), Error> {
        let names: Vec<&str> = specs.iter().flat_map(|s| [s.name.as_str(), s.initializer.as_str()]).collect();
        self.must_match(["--train", "--freeze"], &names)?;
        for s in specs {
            let matches = |set: &GlobSet| set.is_match(&s.name) || set.is_match(&s.initializer);
            s.trainable = (self.train_all || matches(&self.train)) && !matches(&self.freeze);
        }
        Ok(())
    }
}

/// `--untie`: gives each use of the parameters that match one of its own, named after the module that reads it where known.
fn separate(model: &Model, found: &mut Found, untie: &GlobSet) {
    let chosen: Vec<usize> = (0..found.names.len()).filter(|&p| untie.is_match(&found.names[p])).collect();
    for p in chosen {
        let uses: Vec<Use> = found.uses.iter().filter(|(_, b)| b.parameter == p).map(|(u, _)| *u).collect();
        let leaf = found.names[p].rsplit('.').next().unwrap_or_default().to_string();
        for (n, u) in uses.into_iter().enumerate().skip(1) {
            let own = super::torch::module(&model.nodes[u.node]).map(|m| format!("{m}.{leaf}"));
            let name = own.filter(|name| !found.names.contains(name)).unwrap_or_else(|| format!("{}.{n}", found.names[p]));
            found.names.push(name);
            let id = found.names.len() - 1;
            if let Some(b) = found.uses.get_mut(&u) {
                b.parameter = id;
            }
        }
    }
}

/// `--tie`: parameters that match and start equal become the first of them.
fn merge(model: &Model, found: &mut Found, tie: &GlobSet) {
    let by_name: HashMap<&str, &Initializer> = model.initializers.iter().map(|i| (i.name.as_str(), i)).collect();
    let mut first: Vec<(usize, Form, &Initializer)> = vec![];
    let mut to: Vec<usize> = (0..found.names.len()).collect();
    for (u, b) in &found.uses {
        let Some(&i) = by_name.get(model.nodes[u.node].inputs[u.input].as_str()) else { continue };
        if !tie.is_match(&found.names[b.parameter]) && !tie.is_match(&i.name) {
            continue;
        }
        match first.iter().find(|(_, form, other)| *form == b.form && same_start(other, i)) {
            Some((p, ..)) => to[b.parameter] = *p,
            None => first.push((b.parameter, b.form, i)),
        }
    }
    found.uses.values_mut().for_each(|b| b.parameter = to[b.parameter]);
}

fn same_start(a: &Initializer, b: &Initializer) -> bool {
    let data = || match (&a.init, &b.init) {
        (Init::Data(x), Init::Data(y)) => x == y,
        _ => false,
    };
    a.name == b.name || (a.elem == b.elem && a.shape == b.shape && data())
}

/// The elements of an initializer, read from its file if need be.
///
/// # Errors
/// A sentence that names it: the file cannot be read, or there are no elements but a recipe.
pub fn elements(i: &Initializer) -> Result<Arc<ConstData>, String> {
    match &i.init {
        Init::Data(data) => Ok(data.clone()),
        Init::File { path, offset, bytes, .. } => {
            let raw = super::onnx::external::read(path, *offset, *bytes);
            let raw = raw.map_err(|e| format!("initializer {:?} cannot be read: {e}", i.name))?;
            Ok(Arc::new(super::onnx::constant(i.elem, &i.shape, raw).map_err(|e| format!("initializer {:?} {e}", i.name))?))
        }
        Init::Zeros => filled(i, 0.0).map(Arc::new),
        Init::Ones => filled(i, 1.0).map(Arc::new),
        Init::Normal { .. } | Init::Uniform { .. } => Err(format!("initializer {:?} is random and cannot be a constant", i.name)),
    }
}

fn filled(i: &Initializer, value: f32) -> Result<ConstData, String> {
    match i.elements() {
        n if n <= MAX_FILLED => Ok(ConstData::f32(i.shape.clone(), &vec![value; n as usize])),
        _ => Err(format!("initializer {:?} of shape {:?} is too large to be a constant", i.name, i.shape)),
    }
}

/// A few names of a list, and how many there are.
fn listed(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A name that no value of the model has.
fn fresh(taken: &mut HashSet<String>, wish: &str) -> String {
    let mut name = wish.to_string();
    let mut n = 1;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{wish}#{n}");
    }
    name
}

/// The names of all values.
fn value_names(model: &Model) -> HashSet<String> {
    let sources = model.inputs.iter().map(|i| &i.name).chain(model.initializers.iter().map(|i| &i.name));
    sources.chain(model.nodes.iter().flat_map(|n| &n.outputs)).cloned().collect()
}
