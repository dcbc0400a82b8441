//! `fp8c compile` and `fp8c check`.

use super::args::{Check, ClipArg, Compile, EmitArg, FrozenArg, MasterArg, ModelArgs, OptimizerArg, PrecisionArg, ScaleArg, StateArg};
use super::failure::{Failure, any_of, unsupported};
use super::{Done, Output, print, tell};
use crate::compile::{CompileOptions, Compiled, THREADS, compile as run_compile, stages};
use crate::cost::DeviceProfile;
use crate::decide::policy::Policy;
use crate::differentiate::Optimizer;
use crate::import::{ImportOptions, LossSpec, ParameterOptions};
use crate::precision::Precision;
use crate::quantity::Bytes;
use crate::sections::sections;
use crate::{Error, emit, lower};
use fp8c_kernels::DType;
use fp8c_runtime::files::Replaces;
use fp8c_runtime::plan::Clip;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Extents of a dimension.
const EXTENTS: RangeInclusive<u64> = 1..=1 << 32;

/// Compiles a model, or prints one of its stages.
pub fn compile(a: &Compile, output: Output) -> Done {
    let options = options(a)?;
    let started = Instant::now();
    if let Some(stage) = a.emit {
        return print_stage(a, stage, &options);
    }
    let path = a.output.clone().unwrap_or_else(|| default_output(a));
    // Before the work is done for it; a model or its weights are no plans, so no plan replaces them.
    Replaces::Plan.check(&path)?;
    let mut compiled = run_compile(&a.model.model, &options).map_err(|e| smaller(e, &a.model.model, &options))?;
    emit::write(&mut compiled, &path)?;
    for note in &compiled.notes {
        output.say(format!("note: {note}"));
    }
    if output.json {
        print(super::inspect::document(&compiled.plan))?;
    } else if !output.quiet {
        summary(&compiled, &path, started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A refusal; for want of memory with what else would save some.
fn smaller(e: Error, model: &Path, options: &CompileOptions) -> Failure {
    let least = if let Error::Infeasible { least, .. } = &e { Some(least.0) } else { None };
    let mut failure = Failure::from(e);
    let early = CompileOptions { clip: Clip::Previous, ..options.clone() };
    let whole_gradients = least.is_some() && options.clip == Clip::Exact && options.accumulation == 1 && !options.import.infer;
    let savings = [
        ("--clip previous (which fits this budget)", whole_gradients && run_compile(model, &early).is_ok()),
        ("--opt-state bf16", options.state == DType::F32),
        ("--opt-state e4m3", options.state == DType::Bf16),
        ("--master bf16-sr", options.master == DType::F32),
        ("--precision fp8", options.precision != Precision::Fp8),
        ("--optimizer sgd", options.optimizer == Optimizer::AdamW),
    ];
    if let Some(least) = least.filter(|_| !options.import.infer) {
        let mut ways = vec![format!("--mem {least} or more"), "a smaller batch".into()];
        ways.extend(savings.iter().filter(|(_, applies)| *applies).map(|(flag, _)| flag.to_string()));
        failure.hint = Some(format!("compile with {}", any_of(&ways)));
    }
    failure
}

fn default_output(a: &Compile) -> PathBuf {
    let mut name = a.model.model.file_stem().map_or_else(|| "model".into(), |s| s.to_os_string());
    name.push(".plan");
    name.into()
}

fn summary(c: &Compiled, path: &std::path::Path, seconds: f64) {
    let (plan, r) = (&c.plan, &c.plan.report);
    tell(format!("{} -> {} in {seconds:.1} s", plan.model, path.display()));
    tell(format!("  memory     {} planned, budget {}", Bytes(plan.arena_bytes), budget(plan.budget_bytes)));
    if plan.loss.is_some() {
        tell(format!("             {} in usual mixed precision with everything kept", Bytes(r.baseline_peak_bytes)));
        let get = |k: &str| Bytes(r.decisions.get(k).copied().unwrap_or(0));
        if plan.clip == Clip::Previous {
            tell("  update     within the backward pass; gradients are clipped by the norm of the step before");
        }
        tell(format!("  backward   keeps {} ({} of it in E4M3), recomputes {}", get("keep"), get("keep_e4m3"), get("recompute")));
        let again = 100.0 * r.predicted.recompute_seconds / r.predicted.step_seconds.max(1e-12);
        tell(format!("  predicted  {:.3} s a step on {}, {again:.1}% of it recomputation", r.predicted.step_seconds, plan.target));
        tell(format!("             at least {:.3} s: gap {:.2}%", r.certificate.lower_bound_seconds, 100.0 * r.certificate.gap));
        tell(format!("             least budget {} ({} bytes)", Bytes(r.least_budget_bytes), r.least_budget_bytes));
    }
    let archs: Vec<&String> = plan.kernels.first().map(|k| k.launches.keys().collect()).unwrap_or_default();
    let archs = if archs.is_empty() {
        "no PTX".to_string()
    } else {
        format!("PTX for {}", archs.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", "))
    };
    tell(format!(
        "  kernels    {} distinct, {} launches a step, {archs}",
        plan.kernels.len(),
        plan.schedule.micro.len() + plan.schedule.update.len()
    ));
}

fn budget(bytes: u64) -> String {
    if bytes == u64::MAX { "none".into() } else { Bytes(bytes).to_string() }
}

fn print_stage(a: &Compile, stage: EmitArg, options: &CompileOptions) -> Done {
    let path = &a.model.model;
    let text = match stage {
        EmitArg::Graph => stages(path, options)?.imported.graph.to_string(),
        EmitArg::Recognised => stages(path, options)?.recognised.to_string(),
        EmitArg::Joint => stages(path, options)?.joint.to_string(),
        EmitArg::Sections => {
            let joint = stages(path, options)?.joint;
            sections(&joint)?.print(&joint)
        }
        EmitArg::Kernels => {
            let program = lower::lower(&stages(path, options)?.joint, lower::Options::default())?;
            lower::print(&program)
        }
        EmitArg::Forms => crate::compile::forms(path, options)?,
        EmitArg::Schedule => crate::text::schedule(&run_compile(path, options)?.plan),
        EmitArg::Ptx => run_compile(path, options)?.ptx.values().cloned().collect::<Vec<_>>().join("\n"),
        EmitArg::Plan => super::inspect::plan_json(&run_compile(path, options)?.plan),
    };
    print(text.trim_end())
}

/// What a compilation is asked for.
pub fn options(a: &Compile) -> Result<CompileOptions, Failure> {
    let (target, archs) = targets(&a.target)?;
    let n = &a.numbers;
    let precision = match n.precision {
        PrecisionArg::F32 => Precision::F32,
        PrecisionArg::Bf16 => Precision::Bf16,
        PrecisionArg::Fp8 => Precision::Fp8,
        PrecisionArg::Auto if a.model.infer => Precision::F32,
        PrecisionArg::Auto => Precision::Fp8,
    };
    let state = match (n.opt_state, precision) {
        (Some(StateArg::F32), _) | (None, Precision::F32) => DType::F32,
        (Some(StateArg::E4m3), _) => DType::E4m3,
        _ => DType::Bf16,
    };
    let frozen = match (n.frozen, precision) {
        (Some(FrozenArg::F32), _) | (None, Precision::F32) => DType::F32,
        _ => DType::Bf16,
    };
    let optimizer = match n.optimizer {
        OptimizerArg::Adamw => Optimizer::AdamW,
        OptimizerArg::Sgd => Optimizer::Sgd,
        OptimizerArg::Lion => Optimizer::Lion,
    };
    if n.precision_policy.is_some() && precision != Precision::Fp8 {
        return Err(Failure::usage("--precision-policy chooses formats of an fp8 plan, and this one is not", "add --precision fp8"));
    }
    if n.clip == ClipArg::Previous && n.grad_accumulation > 1 {
        let rule = "--clip previous applies each gradient as soon as it is there, and --grad-accumulation sums them first";
        return Err(Failure::usage(rule, "leave out one of the two"));
    }
    let policy = n.precision_policy.as_deref().map(Policy::read).transpose()?.unwrap_or_default();
    let threads = a.threads.unwrap_or(THREADS);
    Ok(CompileOptions {
        import: import_options(&a.model)?,
        budget: a.mem,
        target,
        archs,
        precision,
        policy,
        power_of_two_scales: n.scales == ScaleArg::Pow2,
        optimizer,
        state,
        master: if n.master == MasterArg::Bf16Sr { DType::Bf16 } else { DType::F32 },
        frozen,
        clip: if n.clip == ClipArg::Previous { Clip::Previous } else { Clip::Exact },
        accumulation: n.grad_accumulation,
        threads,
    })
}

/// The chip to plan for and those to emit PTX for.
fn targets(given: &[String]) -> Result<(String, Vec<String>), Failure> {
    let known = |t: &String| t == "auto" || DeviceProfile::of(t).is_some();
    if let Some(odd) = given.iter().find(|t| !known(t)) {
        return Err(Failure::usage(format!("'{odd}' is no target"), "write auto, cpu, sm_89, sm_90a, or a list such as cpu,sm_90a"));
    }
    if given.iter().any(|t| t == "auto") {
        let visible = fp8c_runtime::device::devices().into_iter().find_map(|d| d.arch);
        let planned = visible.clone().unwrap_or_else(|| "cpu".into());
        let archs = visible.map_or_else(|| vec!["sm_89".into(), "sm_90a".into()], |a| vec![a]);
        return Ok((planned, archs));
    }
    Ok((given[0].clone(), given.iter().filter(|t| *t != "cpu").cloned().collect()))
}

fn import_options(a: &ModelArgs) -> Result<ImportOptions, Failure> {
    let mut dims = BTreeMap::new();
    for d in &a.dim {
        let bound = d.split_once('=').and_then(|(name, n)| Some((name.to_string(), n.parse().ok().filter(|n| EXTENTS.contains(n))?)));
        let (name, n) = bound.ok_or_else(|| {
            let rule = format!("--dim must be NAME=N, N a whole number from 1 to {}, not '{d}'", EXTENTS.end());
            Failure::usage(rule, "write --dim batch=8")
        })?;
        dims.insert(name, n);
    }
    let loss = a.loss.as_deref().map(str::parse::<LossSpec>).transpose().map_err(Error::Usage)?;
    Ok(ImportOptions {
        dims,
        loss,
        parameters: ParameterOptions { train: a.train.clone(), freeze: a.freeze.clone(), tie: a.tie.clone(), untie: a.untie.clone() },
        infer: a.infer,
    })
}

/// Lists what a model needs and fp8c lacks.
pub fn check(a: &Check, output: Output) -> Done {
    let gaps = crate::import::check(&a.model.model, &import_options(&a.model)?).map_err(|e| match e {
        Error::Graph { .. } => Failure::refused(e.to_string(), "mend this operator where the model is made, and export it again"),
        other => other.into(),
    })?;
    if output.json {
        print(serde_json::json!({ "gaps": gaps }))?;
    }
    match gaps.is_empty() {
        true => {
            output.say(format!("{}: every operator compiles and has a gradient", a.model.model.display()));
            Ok(())
        }
        false => {
            let hint = "replace these operators where the model is made, and export it again";
            Err(Failure::refused(unsupported(&gaps), hint))
        }
    }
}
