//! Where a plan's time goes on this machine: `profile_plan PLAN STEPS THREADS DATA...` prints seconds a step by kernel.

use fp8c_runtime::Error;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::Hyper;
use fp8c_runtime::plan::PlanFile;
use fp8c_runtime::session::{Batch, Session, SessionOptions};
use std::collections::BTreeMap;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(steps), Some(threads)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: profile_plan PLAN STEPS THREADS DATA...".into());
    };
    let data: Vec<String> = args.collect();
    run(&path, steps.parse()?, threads.parse()?, &data)?;
    Ok(())
}

fn run(path: &str, steps: u64, threads: usize, data: &[String]) -> Result<(), Error> {
    let file = PlanFile::open(path)?;
    let mut session = Session::new(&file, SessionOptions { threads: Some(threads), ..SessionOptions::default() })?;
    let loader = Loader::open(file.plan(), data, Order::Sequential)?;
    let mut batch = Batch::new(file.plan());
    for step in 0..=steps {
        // The first step warms up.
        if step == 1 {
            session.start_profile();
        }
        loader.fill(step * loader.samples_per_step(), &mut batch)?;
        session.step(&batch, &Hyper::default())?;
    }
    let plan = file.plan();
    let mut kernels: BTreeMap<&str, (f64, f64, u32, &str)> = BTreeMap::new();
    let seconds = session.profile().unwrap_or(&[]);
    for (step, measured) in plan.schedule.micro.iter().chain(&plan.schedule.update).zip(seconds) {
        let row = kernels.entry(&plan.kernels[step.kernel as usize].name).or_insert((0.0, 0.0, 0, &step.site));
        *row = (row.0 + measured / steps as f64, row.1 + step.seconds, row.2 + 1, row.3);
    }
    let mut rows: Vec<_> = kernels.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    println!("{:>10} {:>10} {:>6}  kernel, first site", "measured", "predicted", "steps");
    for (name, (measured, predicted, count, site)) in rows {
        println!("{measured:>10.6} {predicted:>10.6} {count:>6}  {name}  {site}");
    }
    println!("{:>10.6} seconds a step on {} threads", seconds.iter().sum::<f64>() / steps as f64, session.threads());
    Ok(())
}
