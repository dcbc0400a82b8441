//! A model to a plan: the passes, in order.

use crate::compose::compose;
use crate::cost::DeviceProfile;
use crate::decide::chain::Costed;
use crate::decide::formats;
use crate::decide::planner::Planner;
use crate::decide::policy::Policy;
use crate::differentiate::{Optimizer, TrainOptions, differentiate, untrained};
use crate::graph::Graph;
use crate::head::Extents;
use crate::import::{ImportOptions, Imported, import};
use crate::parameters::parameters;
use crate::plan::assemble::{Header, assemble, persistent_bytes};
use crate::plan::schedule::Facts;
use crate::precision::{Precision, storage};
use crate::quantity::{Bytes, Seconds};
use crate::recognise::recognise;
use crate::sections::sections;
use crate::units::Program;
use crate::{Error, check, codegen, head, lower, report, sums};
use fp8c_kernels::DType;
use fp8c_kernels::program::ScratchFor;
use fp8c_runtime::plan::{Clip, Fingerprint, Plan, Purpose};
use std::collections::BTreeMap;
use std::path::Path;

/// CPU threads that scratch memory is planned for where nobody says how many: the same plan on every machine.
pub const THREADS: usize = 8;

/// What a model is compiled for.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    pub import: ImportOptions,
    /// Memory of the device; `None` for inference without a limit.
    pub budget: Option<Bytes>,
    /// Whose costs to plan for: `cpu`, `sm_89`, `sm_90a`.
    pub target: String,
    /// Chips to emit PTX for.
    pub archs: Vec<String>,
    pub precision: Precision,
    pub policy: Policy,
    /// Rounds E4M3 scales up to powers of two instead of keeping them exact.
    pub power_of_two_scales: bool,
    pub optimizer: Optimizer,
    pub state: DType,
    /// How trained parameters are stored: f32, or bf16 with stochastic rounding.
    pub master: DType,
    /// How parameters that are not trained are stored where products alone read them: f32 or bf16.
    pub frozen: DType,
    pub clip: Clip,
    pub accumulation: u32,
    /// CPU threads that scratch memory is planned for.
    pub threads: usize,
}

/// Every stage of a compilation; later ones are absent when a stop was asked for.
pub struct Compiled {
    pub notes: Vec<String>,
    pub plan: Plan,
    /// The unit of `program` that each step of the plan runs.
    pub units: Vec<u32>,
    pub ptx: BTreeMap<(String, String), String>,
    pub joint: Graph,
    pub program: Program,
}

/// The graphs before and after differentiation, with what import had to say.
pub struct Stages {
    pub imported: Imported,
    pub recognised: Graph,
    pub joint: Graph,
}

/// A joint graph as a program, with what its launches cost on the target.
pub struct Lowered {
    pub joint: Graph,
    pub program: Program,
    pub facts: Facts,
    /// Predicted time of each unit, those of [`Program::again`] behind the others.
    pub seconds: Vec<Seconds>,
}

impl Lowered {
    /// Lowers a joint graph.
    ///
    /// # Errors
    /// Those of [`lower::lower`]; [`Error::Usage`] for a target that is none.
    pub fn new(joint: Graph, options: &CompileOptions) -> Result<Self, Error> {
        let program = lower::lower(&joint, lower::Options::default())?;
        let facts = Facts::new(&program, scratch_for(options));
        let profile = DeviceProfile::of(&options.target).ok_or_else(|| Error::Usage(format!("'{}' is no target", options.target)))?;
        let seconds = profile.all(&program);
        Ok(Lowered { joint, program, facts, seconds })
    }

    pub fn costed(&self) -> Costed<'_> {
        Costed { program: &self.program, facts: &self.facts, unit_seconds: &self.seconds }
    }

    /// What plans of the program are made of.
    ///
    /// # Errors
    /// As [`sections`].
    pub fn planner(&self) -> Result<Planner<'_>, Error> {
        Ok(Planner::new(self.costed(), &sections(&self.joint)?))
    }
}

/// Imports, recognises and (for training) differentiates a model, and gives its products their formats.
///
/// # Errors
/// Those of the passes; [`Error::Verify`] when a pass left a graph that is not one.
pub fn stages(model: &Path, options: &CompileOptions) -> Result<Stages, Error> {
    stages_of(import(model, &options.import)?, options)
}

fn stages_of(imported: Imported, options: &CompileOptions) -> Result<Stages, Error> {
    verified("import", &imported.graph)?;
    let recognised = recognise(imported.graph.clone())?;
    verified("recognise", &recognised)?;
    let composed = compose(&recognised)?;
    verified("compose", &composed)?;
    let narrowed = parameters(composed, options.master, options.frozen)?;
    verified("parameters", &narrowed)?;
    let stored = storage(narrowed, options.precision)?;
    verified("storage", &stored)?;
    let sliced = head::slice(stored, purpose(options), Extents::slice_rows)?;
    verified("slice", &sliced)?;
    let joint = match purpose(options) {
        Purpose::Infer => sliced,
        Purpose::Train => {
            let (optimizer, state_dtype) = (options.optimizer, options.state);
            let train = TrainOptions { optimizer, state_dtype, accumulation: options.accumulation, clip: options.clip };
            differentiate(sliced, &train)?
        }
    };
    verified("differentiate", &joint)?;
    let joint = sums::in_place(head::turn(joint)?)?;
    verified("turn", &joint)?;
    let joint = match options.precision {
        Precision::Fp8 => formats::formats(&joint, &options.policy, options.power_of_two_scales)?,
        _ => joint,
    };
    verified("formats", &joint)?;
    Ok(Stages { imported, recognised, joint })
}

/// Compiles a model to a proved plan.
///
/// # Errors
/// Those of the passes; [`Error::Infeasible`] when no plan fits the budget; [`Error::Verify`] when the replay disagrees with the planner.
pub fn compile(model: &Path, options: &CompileOptions) -> Result<Compiled, Error> {
    compile_imported(import(model, &options.import)?, model, options)
}

/// Compiles what was imported from a model file.
///
/// # Errors
/// As [`compile`].
pub fn compile_imported(imported: Imported, model: &Path, options: &CompileOptions) -> Result<Compiled, Error> {
    let Stages { imported, joint, .. } = stages_of(imported, options)?;
    let lowered = Lowered::new(joint, options)?;
    let planner = lowered.planner()?;
    let budget = options.budget.unwrap_or(Bytes::MAX);
    let rung = planner.choose(budget)?;
    let Lowered { joint, program, seconds, .. } = &lowered;
    let header = header(model, options, &imported, budget);
    let mut plan = assemble(joint, program, &rung.schedule, &rung.packing, seconds, header);
    let units: Vec<u32> = rung.schedule.events.iter().map(|e| e.unit).collect();
    check::replay(joint, program, &plan, &units)?;
    let mut notes = imported.notes;
    notes.extend(untrained(joint).into_iter().map(|name| format!("{name} gets no gradient and is left as it is")));
    plan.report = report::report(joint, &lowered.costed(), &planner, &rung, budget, &notes)?;
    let ptx = codegen::ptx(&mut plan, &options.archs)?;
    drop(planner);
    let Lowered { joint, program, .. } = lowered;
    Ok(Compiled { notes, plan, units, ptx, joint, program })
}

/// Whose scratch memory the arena has: a GPU's kernels need none.
fn scratch_for(options: &CompileOptions) -> ScratchFor {
    if options.target == "cpu" { ScratchFor::Cpu { threads: options.threads } } else { ScratchFor::Gpu }
}

/// The forms of a model's sections and what is chosen of them, for the reader.
///
/// # Errors
/// Those of the passes.
pub fn forms(model: &Path, options: &CompileOptions) -> Result<String, Error> {
    let lowered = Lowered::new(stages(model, options)?.joint, options)?;
    lowered.planner()?.print(options.budget.unwrap_or(Bytes::MAX) - persistent_bytes(&lowered.program))
}

fn purpose(options: &CompileOptions) -> Purpose {
    if options.import.infer { Purpose::Infer } else { Purpose::Train }
}

fn verified(pass: &'static str, graph: &Graph) -> Result<(), Error> {
    graph.verify().map_err(|e| Error::Verify { pass, reason: e.to_string() })
}

fn header(model: &Path, options: &CompileOptions, imported: &Imported, budget: Bytes) -> Header {
    Header {
        model: model.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned()),
        fingerprint: Fingerprint {
            model: imported.sha256.clone(),
            compiler: concat!("fp8c ", env!("CARGO_PKG_VERSION")).into(),
            target: options.target.clone(),
        },
        purpose: purpose(options),
        target: options.target.clone(),
        precision: options.precision.name().into(),
        budget,
        accumulation: options.accumulation,
        clip: options.clip,
        inputs: imported.inputs.clone(),
        optimizer: (!options.import.infer).then(|| options.optimizer.name().to_string()),
    }
}
