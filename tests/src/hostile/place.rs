//! Where targets that read files put them, and a small language model that fits their data.

use fp8c::compile::compile;
use fp8c::import::json;
use fp8c::import::new::{Family, Request, Sizes, new};
use fp8c::precision::Precision;
use fp8c_runtime::plan::PlanFile;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Vocabulary of the model.
pub const VOCABULARY: u64 = 256;
/// Tokens of a sample.
pub const LENGTH: u64 = 8;

thread_local! {
    static FOLDER: TempDir = folder();
    static MODEL: RefCell<Option<PlanFile>> = const { RefCell::new(None) };
}

/// In memory where the system has such a folder.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

/// This thread's folder.
pub fn path() -> PathBuf {
    FOLDER.with(|f| f.path().to_path_buf())
}

/// Writes a file of this thread's folder.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = path().join(name);
    std::fs::write(&path, bytes).expect("the temporary folder can be written");
    path
}

/// Does something with the plan of a GPT-2 of one layer: `input_ids` and `labels`, `[2, 8]`.
pub fn with_model<T>(act: impl FnOnce(&PlanFile) -> T) -> T {
    MODEL.with(|m| act(m.borrow_mut().get_or_insert_with(model)))
}

fn model() -> PlanFile {
    let one = Some(1);
    let (vocab, seq) = (Some(VOCABULARY), Some(LENGTH));
    let request = Request { layers: one, dim: Some(8), heads: one, ffn: Some(8), vocab, seq, batch: Some(2), ..Request::default() };
    let sizes = Sizes::of(Family::Gpt2, &request).expect("sizes that fit");
    let model = file("model.json", json::write(&new(Family::Gpt2, &sizes)).expect("a model that can be written").as_bytes());
    let mut compiled = compile(&model, &crate::options(Precision::F32, Some(1 << 30))).expect("a model that compiles");
    let plan = path().join("model.plan");
    fp8c::emit::write(&mut compiled, &plan).expect("the temporary folder can be written");
    PlanFile::open(&plan).expect("a plan that was just written")
}
