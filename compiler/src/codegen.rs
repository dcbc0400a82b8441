//! PTX for every distinct kernel of a plan.

use crate::Error;
use fp8c_kernels::ptx::{Arch, generate};
use fp8c_runtime::plan::Plan;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Generates the kernels of a plan for each chip (`sm_89`, `sm_90a`), records how they are launched, and returns their texts by
/// kernel name and chip.
///
/// # Errors
/// [`Error::Kernel`] for a kernel that a chip has no code for.
pub fn ptx(plan: &mut Plan, archs: &[String]) -> Result<BTreeMap<(String, String), String>, Error> {
    let mut texts = BTreeMap::new();
    for name in archs {
        let arch = match name.as_str() {
            "sm_89" => Arch::Sm89,
            "sm_90a" => Arch::Sm90a,
            _ => return Err(Error::Usage(format!("'{name}' is no chip that PTX is emitted for"))),
        };
        let modules: Vec<_> = plan.kernels.par_iter().map(|k| generate(&k.kernel, &k.name, arch)).collect::<Result<_, _>>()?;
        for (entry, module) in plan.kernels.iter_mut().zip(modules) {
            entry.launches.insert(name.clone(), module.launches);
            texts.insert((entry.name.clone(), name.clone()), module.text);
        }
    }
    Ok(texts)
}
