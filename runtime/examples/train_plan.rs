//! Trains a plan without the compiler: `train_plan PLAN STEPS DATA...`, with data as `fp8c train --data` takes it.

use fp8c_runtime::Error;
use fp8c_runtime::data::{Loader, Order};
use fp8c_runtime::hyper::{Hyper, LossScaling};
use fp8c_runtime::plan::PlanFile;
use fp8c_runtime::schedule::{LrSchedule, Shape};
use fp8c_runtime::session::{Session, SessionOptions};
use fp8c_runtime::trainer::{Event, TrainOptions, train};
use std::sync::atomic::AtomicBool;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(steps)) = (args.next(), args.next()) else {
        return Err("usage: train_plan PLAN STEPS DATA...".into());
    };
    let data: Vec<String> = args.collect();
    run(&path, steps.parse()?, &data)?;
    Ok(())
}

fn run(path: &str, steps: u64, data: &[String]) -> Result<(), Error> {
    let file = PlanFile::open(path)?;
    let mut session = Session::new(&file, SessionOptions::default())?;
    let loader = Loader::open(file.plan(), data, Order::Shuffled { seed: 0 })?;
    loader.notes().iter().for_each(|note| println!("note: {note}"));
    let peak = Hyper::default().learning_rate;
    let options = TrainOptions {
        hyper: Hyper { loss_scaling: LossScaling::default_for(&file.plan().precision), ..Hyper::default() },
        schedule: LrSchedule { shape: Shape::Cosine, peak, warmup: steps / 20, steps },
        no_decay: vec!["*.bias".into()],
        data: data.join(" "),
        log: None,
        checkpoint: None,
        validation: None,
    };
    let stop = AtomicBool::new(false);
    let summary = train(&mut session, &loader, &options, &stop, &mut |event| match event {
        Event::Step(m) => println!("step {:>6}  loss {:.4}  {:.0} tokens/s", m.step, m.loss, m.tokens_per_second),
        Event::Note(note) => println!("note: {note}"),
    })?;
    println!("arena: {} bytes planned, {} touched", file.plan().arena_bytes, summary.arena_peak_bytes);
    Ok(())
}
