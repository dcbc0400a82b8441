//! A case as `dump.py` writes it.

use fp8c::graph::ConstData;
use fp8c::import::model::Elem;
use serde_json::Value;
use std::path::Path;

/// Inputs, expected outputs and tolerances.
pub struct Case {
    pub rtol: f64,
    pub atol: f64,
    pub inputs: Vec<Named>,
    pub outputs: Vec<Named>,
}

/// A named tensor; nothing where the value is not a tensor of a known type.
pub struct Named {
    pub name: String,
    /// Element type, shape and little-endian elements.
    pub tensor: Option<(Elem, Vec<u64>, Vec<u8>)>,
}

impl Named {
    /// The elements as the graph stores them.
    pub fn stored(&self) -> Option<ConstData> {
        let (elem, shape, bytes) = self.tensor.as_ref()?;
        fp8c::import::onnx::constant(*elem, shape, bytes.clone()).ok()
    }
}

impl Case {
    pub fn read(folder: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(folder.join("case.json")).map_err(|e| e.to_string())?;
        let blob = std::fs::read(folder.join("data.bin")).map_err(|e| e.to_string())?;
        let json: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let list = |key: &str| json[key].as_array().into_iter().flatten().map(|v| named(v, &blob)).collect::<Option<Vec<_>>>();
        let case = || {
            let (rtol, atol) = (json["rtol"].as_f64()?, json["atol"].as_f64()?);
            Some(Case { rtol, atol, inputs: list("inputs")?, outputs: list("outputs")? })
        };
        case().ok_or_else(|| "lacks a field".into())
    }
}

fn named(v: &Value, blob: &[u8]) -> Option<Named> {
    let elem = Elem::from_onnx(v["elem"].as_i64()? as i32);
    let name = v["name"].as_str()?.to_string();
    let Some(shape) = v["shape"].as_array() else { return Some(Named { name, tensor: None }) };
    let shape = shape.iter().map(Value::as_u64).collect::<Option<Vec<_>>>()?;
    let start = v["offset"].as_u64()? as usize;
    let bytes = blob.get(start..start + v["bytes"].as_u64()? as usize)?.to_vec();
    Some(Named { name, tensor: Some((elem, shape, bytes)) })
}
