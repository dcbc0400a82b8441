//! `config.json`.

use crate::Error;
use fp8c_runtime::files::Input;
use serde_json::Value as Json;
use std::path::Path;

/// What a folder says of its model.
#[derive(Clone, Debug)]
pub struct Config {
    json: Json,
}

impl Config {
    /// Reads the configuration of a folder.
    ///
    /// # Errors
    /// [`Error::Runtime`] without the file, [`Error::Model`] when it is no JSON object.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let text = Input::open(&path)?.read_all()?;
        let json: Json = serde_json::from_slice(&text)
            .map_err(|e| Error::Model { path: path.display().to_string(), reason: format!("is not a configuration: {e}") })?;
        Ok(Config { json })
    }

    /// A configuration in memory.
    pub fn of(json: Json) -> Self {
        Config { json }
    }

    /// A field that is there and not null; fields of fields are written with points.
    pub fn get(&self, name: &str) -> Option<&Json> {
        name.split('.').try_fold(&self.json, |at, part| at.get(part)).filter(|v| !v.is_null())
    }

    /// A whole number.
    ///
    /// # Errors
    /// A sentence without a subject when it is missing, or too large to be a size.
    pub fn size(&self, name: &str) -> Result<u64, String> {
        let found = self.get(name).ok_or_else(|| format!("has no {name} in its config.json"))?;
        found
            .as_u64()
            .filter(|n| (1..=crate::import::new::MAX_SIZE).contains(n))
            .ok_or_else(|| format!("has the {name} {found}, which is no size"))
    }

    /// A whole number, or what is usual.
    ///
    /// # Errors
    /// As [`Config::size`].
    pub fn size_or(&self, name: &str, usual: u64) -> Result<u64, String> {
        if self.get(name).is_some() { self.size(name) } else { Ok(usual) }
    }

    /// A number, or what is usual.
    ///
    /// # Errors
    /// A sentence without a subject for a field that is no number.
    pub fn number_or(&self, name: &str, usual: f64) -> Result<f64, String> {
        match self.get(name) {
            None => Ok(usual),
            Some(v) => v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| format!("has the {name} {v}, which is no number")),
        }
    }

    /// True or false, or what is usual.
    pub fn flag_or(&self, name: &str, usual: bool) -> bool {
        self.get(name).and_then(Json::as_bool).unwrap_or(usual)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Json::as_str)
    }

    /// The first of the classes that the folder was saved from, such as `LlamaForCausalLM`.
    pub fn architecture(&self) -> Option<&str> {
        self.get("architectures")?.get(0)?.as_str()
    }

    /// The configuration of a folder whose floats are all f32.
    ///
    /// # Errors
    /// Never for what was read from a file.
    pub fn in_f32(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = self.json.clone();
        if let Some(fields) = json.as_object_mut() {
            let old = fields.remove("torch_dtype").is_some() && !fields.contains_key("dtype");
            fields.insert(if old { "torch_dtype" } else { "dtype" }.into(), "float32".into());
        }
        let mut text = serde_json::to_vec_pretty(&json)?;
        text.push(b'\n');
        Ok(text)
    }
}
