//! Writes the seeds of a fuzz target into a folder: `seeds TARGET FOLDER`. One whose inputs are choices begins with a few zeros.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (name, folder) = (args.next().unwrap_or_default(), PathBuf::from(args.next().unwrap_or_default()));
    let seeds = fp8c_tests::hostile::target(&name).map_or_else(|| vec![vec![0; 256]], |target| (target.seeds)());
    std::fs::create_dir_all(&folder)?;
    for (i, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{i}")), seed)?;
    }
    Ok(())
}
