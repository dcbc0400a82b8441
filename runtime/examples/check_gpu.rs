//! A GPU against the CPU, launch by launch: `check_gpu PLAN DEVICE STEPS DATA...` compares what every launch of a step writes, then
//! trains on both and compares losses, and takes the time of the GPU's launches. One line of JSON; status 1 where they differ.

use fp8c_runtime::Error;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::device::DeviceChoice;
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::PlanFile;
use fp8c_runtime::session::{Batch, Session, SessionOptions};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(device), Some(steps)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: check_gpu PLAN DEVICE STEPS DATA...".into());
    };
    let data: Vec<String> = args.collect();
    Ok(if run(&path, device.parse()?, steps.parse()?, &data)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn open(file: &PlanFile, device: DeviceChoice) -> Result<Session, Error> {
    Session::new(file, SessionOptions { device, ..SessionOptions::default() })
}

/// Losses of some steps on a device, and seconds of a step, the first left out.
fn train(file: &PlanFile, device: DeviceChoice, loader: &Loader, steps: u64) -> Result<(Vec<f64>, f64), Error> {
    let (mut session, mut batch) = (open(file, device)?, Batch::new(file.plan()));
    let (mut losses, mut started) = (vec![], Instant::now());
    for step in 0..steps {
        loader.fill(step * loader.samples_per_step(), &mut batch)?;
        losses.push(session.step(&batch, &Hyper::default())?.loss);
        if step == 0 {
            started = Instant::now();
        }
    }
    Ok((losses, started.elapsed().as_secs_f64() / (steps - 1) as f64))
}

fn run(path: &str, device: DeviceChoice, steps: u64, data: &[String]) -> Result<bool, Error> {
    let file = PlanFile::open(path)?;
    let loader = Loader::open(file.plan(), data, Order::Sequential)?;
    // The first step is not timed.
    let steps = steps.max(2);
    let mut batch = Batch::new(file.plan());
    loader.fill(0, &mut batch)?;
    let differences = open(&file, DeviceChoice::Cpu)?.compare(&mut open(&file, device)?, &batch, &Hyper::default())?;
    let wrong: Vec<_> = differences.iter().filter(|d| !d.is_rounding()).collect();
    for d in &wrong {
        println!("{path}: step {} {} ({}) writes {} off by {:e} of its largest", d.position, d.site, d.kernel, d.tensor, d.worst);
    }
    let (cpu, _) = train(&file, DeviceChoice::Cpu, &loader, steps)?;
    let (gpu, seconds) = train(&file, device, &loader, steps)?;
    let apart = cpu.iter().zip(&gpu).map(|(a, b)| (a - b).abs() / a.abs()).fold(0.0, f64::max);
    let worst = differences.iter().map(|d| d.worst).fold(0.0, f64::max);
    let agree = wrong.is_empty() && apart <= if file.plan().precision == "f32" { 1e-5 } else { 1e-3 };
    println!(
        "{}",
        serde_json::json!({
            "plan": path, "agree": agree, "launches": differences.len(), "wrong": wrong.len(), "worst": worst, "loss_apart": apart,
            "seconds_a_step": seconds, "losses": gpu,
        })
    );
    Ok(agree)
}
