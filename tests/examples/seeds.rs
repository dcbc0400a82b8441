//! Writes the seeds of a fuzz target into a folder: `seeds TARGET FOLDER`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (name, folder) = (args.next().unwrap_or_default(), PathBuf::from(args.next().unwrap_or_default()));
    let target = fp8c_tests::hostile::target(&name).ok_or_else(|| std::io::Error::other(format!("there is no target {name:?}")))?;
    std::fs::create_dir_all(&folder)?;
    for (i, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{i}")), seed)?;
    }
    Ok(())
}
