//! What a training was told, kept in its checkpoints, so that a change is told when it is resumed.

use super::TrainOptions;
use crate::checkpoint::Settings;
use crate::data::Loader;
use crate::hyper::LossScaling;
use crate::plan::Plan;
use crate::schedule::Shape;
use sha2::{Digest, Sha256};

/// A plan compiled anew differs in nothing that can be shown.
const PLAN: &str = "plan";

/// The settings that shape what is learned, by the names that messages use.
pub(super) fn settings(plan: &Plan, loader: &Loader, options: &TrainOptions) -> Settings {
    let (hyper, schedule) = (&options.hyper, &options.schedule);
    let shape = match schedule.shape {
        Shape::Constant => "constant".to_string(),
        Shape::Cosine => format!("cosine to step {}", schedule.steps),
        Shape::Linear => format!("linear to step {}", schedule.steps),
        Shape::Wsd => format!("wsd to step {}", schedule.steps),
    };
    let scaling = match hyper.loss_scaling {
        LossScaling::None => "none".to_string(),
        LossScaling::Dynamic => "dynamic".to_string(),
        LossScaling::Fixed(x) => x.to_string(),
    };
    let json = serde_json::to_vec(plan).unwrap_or_default();
    let digest: String = Sha256::digest(&json).iter().map(|b| format!("{b:02x}")).collect();
    [
        ("learning rate", schedule.peak.to_string()),
        ("schedule", shape),
        ("warm-up", format!("{} steps", schedule.warmup)),
        ("weight decay", hyper.weight_decay.to_string()),
        ("betas", format!("{}, {}", hyper.betas[0], hyper.betas[1])),
        ("eps", hyper.eps.to_string()),
        ("gradient clipping", hyper.clip.map_or("none".to_string(), |c| c.to_string())),
        ("loss scaling", scaling),
        ("undecayed parameters", if options.no_decay.is_empty() { "none".to_string() } else { options.no_decay.join(", ") }),
        ("data", options.data.clone()),
        ("samples a step", loader.samples_per_step().to_string()),
        ("optimizer", plan.optimizer.clone().unwrap_or_else(|| "none".to_string())),
        ("gradient accumulation", plan.accumulation.to_string()),
        ("precision", plan.precision.clone()),
        (PLAN, digest),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into()
}

/// A sentence for each setting that is another than before.
pub(super) fn changes(before: &Settings, now: &Settings) -> Vec<String> {
    let sentence = |(name, new): (&String, &String)| match before.get(name).filter(|old| *old != new)? {
        _ if name == PLAN => Some("the plan is another one of the same model".to_string()),
        old if name == "optimizer" => Some(format!("the optimizer was {old} and is {new} from here on; its state begins anew")),
        old => Some(format!("the {name} was {old} and is {new} from here on")),
    };
    now.iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_one_sentence_and_what_stays_is_none() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Settings>();
        let before = map(&[("learning rate", "0.1"), ("optimizer", "adamw"), ("plan", "aa"), ("eps", "1")]);
        let now = map(&[("learning rate", "0.2"), ("optimizer", "lion"), ("plan", "bb"), ("eps", "1"), ("new", "2")]);
        let want = [
            "the learning rate was 0.1 and is 0.2 from here on",
            "the optimizer was adamw and is lion from here on; its state begins anew",
            "the plan is another one of the same model",
        ];
        assert_eq!(changes(&before, &now), want);
        assert!(changes(&now, &now).is_empty());
    }
}
