//! Checkpoints: a folder of an index and two safetensors files, one of which is replaced.

use super::place::{path, with_model};
use super::{Rng, Target, mutate, safetensors};
use fp8c_runtime::checkpoint::{Position, Standing, Store, latest, load, load_parameters};
use fp8c_runtime::session::{Session, SessionOptions};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::path::PathBuf;

pub const TARGET: Target = Target { name: "checkpoint", run: checkpoint, seeds, mutate };

/// The files of a checkpoint; the first byte of an input says which it replaces.
const FILES: [&str; 3] = ["state.json", "model.safetensors", "optimizer.safetensors"];

/// A session and a sound checkpoint of it.
struct Sound {
    session: Session,
    folder: PathBuf,
    files: Vec<Vec<u8>>,
}

thread_local! {
    static SOUND: RefCell<Option<Sound>> = const { RefCell::new(None) };
}

fn sound() -> Sound {
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let session = with_model(|m| Session::new(m, options).expect("the CPU is always there"));
    let folder = path().join("checkpoints");
    let standing = Standing { position: Position { step: 3, samples: 6, skipped: 0 }, ..Standing::default() };
    let saved = Store::open(&folder).and_then(|store| store.save(&session, &standing));
    let at = saved.expect("the temporary folder can be written");
    let files = FILES.iter().map(|f| std::fs::read(at.join(f)).expect("a file of the checkpoint")).collect();
    Sound { session, folder, files }
}

fn with_sound<T>(act: impl FnOnce(&mut Sound) -> T) -> T {
    SOUND.with(|s| act(s.borrow_mut().get_or_insert_with(sound)))
}

/// Replaces one file of a checkpoint, its checksum with it, and loads it.
pub fn checkpoint(data: &[u8]) {
    let Some((&which, content)) = data.split_first() else { return };
    let which = usize::from(which) % FILES.len();
    with_sound(|sound| {
        let at = sound.folder.join("step-000003");
        let mut sums = String::new();
        for (i, name) in FILES.iter().enumerate() {
            let bytes = if i == which { content } else { &sound.files[i][..] };
            let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            sums += &format!("{digest}  {name}\n");
            std::fs::write(at.join(name), bytes).expect("the temporary folder can be written");
        }
        std::fs::write(at.join("SHA256SUMS"), sums).expect("the temporary folder can be written");
        if let Ok(Some(newest)) = latest(&sound.folder) {
            drop(load(&mut sound.session, &newest));
        }
        drop(load_parameters(&mut sound.session, &at, &mut |_| ()));
    });
}

fn seeds() -> Vec<Vec<u8>> {
    with_sound(|sound| sound.files.iter().enumerate().map(|(i, f)| [&[i as u8], &f[..]].concat()).collect())
}

fn mutate(data: &[u8], rng: &mut Rng) -> Vec<u8> {
    let Some((&which, content)) = data.split_first() else { return vec![rng.u8(..)] };
    let content = if usize::from(which) % FILES.len() == 0 { mutate::json(content, rng) } else { safetensors::mutate(content, rng) };
    [&[which], &content[..]].concat()
}
