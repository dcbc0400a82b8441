//! `ptxas`: what it says about a kernel.
//!
//! Found by the environment variable FP8C_PTXAS, else on the PATH. Tests that need it say so and pass where there is none.

use fp8c_kernels::program::Kernel;
use fp8c_kernels::ptx::{Arch, Module, generate};
use std::path::PathBuf;
use std::process::Command;

pub const ARCHS: [Arch; 2] = [Arch::Sm89, Arch::Sm90a];

fn ptxas() -> Option<PathBuf> {
    let named = std::env::var_os("FP8C_PTXAS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|d| d.join("ptxas")).find(|p| p.is_file()))
}

/// Assembles a module and returns what `ptxas -v` printed; None without ptxas.
fn assemble(module: &Module, arch: Arch) -> Option<String> {
    static NOTICE: std::sync::Once = std::sync::Once::new();
    let Some(ptxas) = ptxas() else {
        NOTICE.call_once(|| eprintln!("ptxas is neither on the PATH nor named by FP8C_PTXAS: no kernel is assembled"));
        return None;
    };
    let file = tempfile::NamedTempFile::with_suffix(".ptx").unwrap();
    std::fs::write(file.path(), &module.text).unwrap();
    let output =
        Command::new(ptxas).arg("-v").arg(format!("-arch={}", arch.cpu())).arg(file.path()).args(["-o", "/dev/null"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "ptxas refused:\n{said}\n{}", module.text);
    Some(said)
}

/// Generates a kernel for both chips and asserts that ptxas takes it without spills and without a stack frame.
pub fn check(name: &str, kernel: &Kernel) {
    for arch in ARCHS {
        let start = std::time::Instant::now();
        let module = generate(kernel, name, arch).unwrap_or_else(|e| panic!("{name}: {e}"));
        let generated = start.elapsed();
        assert!(module.launches.iter().all(|l| module.text.contains(&format!(".entry {}(", l.entry))), "{name}: an entry is missing");
        let Some(said) = assemble(&module, arch) else { continue };
        let clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        let frames = said.lines().filter(|l| l.contains("stack frame"));
        frames.for_each(|l| assert!(l.contains(clean), "{name} for {}: {l}\n{said}", arch.cpu()));
        let registers = said.split("Used ").skip(1).filter_map(|s| s.split(' ').next()).collect::<Vec<_>>().join(", ");
        eprintln!(
            "{name:40} {:8} {:6.1} ms {:5} lines, registers {registers}",
            arch.cpu(),
            generated.as_secs_f64() * 1e3,
            module.text.lines().count()
        );
    }
}

#[test]
fn the_same_kernel_gives_the_same_bytes() {
    for (name, kernel) in super::programs::all() {
        let texts = ARCHS.map(|arch| (generate(&kernel, &name, arch).unwrap().text, generate(&kernel, &name, arch).unwrap().text));
        assert!(texts.iter().all(|(a, b)| a == b), "{name}");
    }
}
