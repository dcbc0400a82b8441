//! What the machine pretends to have, and the faults that are planted in the calls.

use std::path::PathBuf;

/// Set by the environment variables that begin with `FP8C_STANDIN_`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `CHIP`: compute capability, as `9.0`.
    pub chip: (i32, i32),
    /// `MEMORY`: bytes.
    pub memory: u64,
    /// `DEVICES`.
    pub devices: i32,
    /// `SEED` of the order of execution.
    pub seed: u64,
    /// `LOG`: where the report goes, JSON.
    pub log: Option<PathBuf>,
    /// `PLANT`: `ACT CALL [NUMBER]`, separated by semicolons.
    pub plants: Vec<Plant>,
}

/// A fault on purpose: the call is not what the program asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plant {
    pub act: Act,
    pub call: String,
    /// Which of the calls, from 1; all when absent.
    pub number: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The call succeeds and does nothing.
    Ignore,
    /// The call fails.
    Fail,
    /// The first allocation is freed before the call.
    Free,
    /// The call's bytes are halved.
    Halve,
}

impl Default for Config {
    fn default() -> Self {
        Config { chip: (9, 0), memory: 80 << 30, devices: 1, seed: 1, log: None, plants: vec![] }
    }
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// A sentence that names the variable.
    pub fn from_environment() -> Result<Config, String> {
        let get = |name: &str| std::env::var(format!("FP8C_STANDIN_{name}")).ok();
        let mut config = Config { log: get("LOG").map(PathBuf::from), ..Config::default() };
        if let Some(text) = get("CHIP") {
            let numbers = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            config.chip = numbers.ok_or_else(|| format!("FP8C_STANDIN_CHIP: {text:?} is no compute capability"))?;
        }
        let number = |name: &str, default: u64| match get(name) {
            Some(text) => text.parse().map_err(|_| format!("FP8C_STANDIN_{name}: {text:?} is no number")),
            None => Ok(default),
        };
        config.memory = number("MEMORY", config.memory)?;
        config.devices = i32::try_from(number("DEVICES", 1)?).unwrap_or(i32::MAX);
        config.seed = number("SEED", config.seed)?;
        if let Some(text) = get("PLANT") {
            config.plants = text.split(';').map(|p| plant(p.trim())).collect::<Result<_, _>>()?;
        }
        Ok(config)
    }

    /// Name of the device.
    pub fn name(&self) -> String {
        format!("stand-in for sm_{}{}", self.chip.0, self.chip.1)
    }

    /// Shared memory that a block may ask for, bytes.
    pub fn shared_limit(&self) -> u32 {
        match self.chip {
            (9 | 10, _) => 227 * 1024,
            (8, 0) => 163 * 1024,
            _ => 99 * 1024,
        }
    }
}

fn plant(text: &str) -> Result<Plant, String> {
    let fault = || format!("FP8C_STANDIN_PLANT: {text:?} is not ACT CALL [NUMBER]");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (Some(act), Some(call)) = (words.first(), words.get(1)) else { return Err(fault()) };
    let act = match *act {
        "ignore" => Act::Ignore,
        "fail" => Act::Fail,
        "free" => Act::Free,
        "halve" => Act::Halve,
        _ => return Err(fault()),
    };
    let number = words.get(2).map(|n| n.parse().map_err(|_| fault())).transpose()?;
    Ok(Plant { act, call: call.to_string(), number })
}
