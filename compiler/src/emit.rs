//! Writing a compiled plan to a file.

use crate::Error;
use crate::compile::Compiled;
use crate::graph::{ConstData, Graph, Init, Op};
use fp8c_runtime::files::Input;
use fp8c_runtime::plan::{self, Contents, PlanFile, Role, StoredTensor};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Writes the plan file, aside and renamed: weights and constants that the model held in memory inside it, others by reference.
///
/// # Errors
/// [`Error::Io`] for a folder that is not there, [`Error::Runtime`] for a weight file that cannot be read or a plan that cannot be written.
pub fn write(compiled: &mut Compiled, path: &Path) -> Result<(), Error> {
    refer_to_files(&mut compiled.plan, path)?;
    let constants = constants(&compiled.joint, compiled);
    let constants: Vec<StoredTensor> = constants.iter().map(|(name, data)| stored(name, data)).collect();
    let weights: Vec<StoredTensor> = weights(&compiled.joint, &compiled.plan);
    let contents = Contents { plan: &compiled.plan, ptx: &compiled.ptx, weights: &weights, constants: &constants };
    PlanFile::write(path, &contents).map_err(Error::from)
}

fn stored<'a>(name: &'a str, data: &'a ConstData) -> StoredTensor<'a> {
    StoredTensor { name, dtype: data.ty.dtype, shape: &data.ty.shape, bytes: &data.bytes }
}

/// The value of each constant tensor of the plan.
fn constants<'a>(graph: &'a Graph, compiled: &Compiled) -> Vec<(String, &'a ConstData)> {
    let constant = compiled.program.buffers.iter().filter(|b| b.persistent && b.role == Role::Constant);
    let value = constant.filter_map(|b| match &graph.def(b.value).op {
        Op::Constant(data) => Some((b.name.clone(), data.as_ref())),
        _ => None,
    });
    value.collect()
}

fn weights<'a>(graph: &'a Graph, plan: &'a plan::Plan) -> Vec<StoredTensor<'a>> {
    let by_name: HashMap<&str, &Init> = graph.parameters.iter().map(|p| (p.name.as_str(), &p.init)).collect();
    let stored_ones = plan.parameters.iter().filter_map(|p| match (&p.init, by_name.get(p.name.as_str())) {
        (plan::Init::Stored { name }, Some(Init::Data(data))) => Some(stored(name, data)),
        _ => None,
    });
    stored_ones.collect()
}

/// Makes references to weight files relative to the plan, with what tells a changed file.
fn refer_to_files(plan: &mut plan::Plan, plan_path: &Path) -> Result<(), Error> {
    let io = |path: &Path, source| Error::Io { path: path.into(), source };
    let folder = plan_path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|e| io(folder, e))?;
    let mut known: HashMap<PathBuf, (u64, String)> = HashMap::new();
    for p in &mut plan.parameters {
        let plan::Init::File { path, file_bytes, sha256, .. } = &mut p.init else { continue };
        let file = PathBuf::from(&*path).canonicalize().map_err(|e| io(Path::new(&*path), e))?;
        if !known.contains_key(&file) {
            let input = Input::open(&file)?;
            let mut digest = Sha256::new();
            input.pass(0..input.bytes(), &mut |bytes| digest.update(bytes), &[], &mut |_, _| Ok(()))?;
            let hash: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
            known.insert(file.clone(), (input.bytes(), hash));
        }
        (*file_bytes, *sha256) = known[&file].clone();
        *path = relative(&file, &folder).to_string_lossy().into_owned();
    }
    Ok(())
}

/// `file` as seen from `folder`; both absolute.
fn relative(file: &Path, folder: &Path) -> PathBuf {
    let (a, b): (Vec<_>, Vec<_>) = (file.components().collect(), folder.components().collect());
    let common = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let up = std::iter::repeat_n(Path::new(".."), b.len() - common);
    up.map(|p| p.to_path_buf()).chain(a[common..].iter().map(|c| PathBuf::from(c.as_os_str()))).collect()
}
