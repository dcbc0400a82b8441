//! `ptxas` and `nvdisasm`: what they say about a kernel.
//!
//! ptxas is named by the environment variable FP8C_PTXAS, else on the PATH; nvdisasm is beside it or on the PATH. Tests that need
//! them say so and pass where there are none.

use fp8c_kernels::program::Kernel;
use fp8c_kernels::ptx::{Arch, Module, Tile, generate, generate_tiled};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

pub const ARCHS: [Arch; 2] = [Arch::Sm89, Arch::Sm90a];

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file())
}

fn ptxas() -> Option<PathBuf> {
    static NOTICE: Once = Once::new();
    let found = std::env::var_os("FP8C_PTXAS").map(PathBuf::from).or_else(|| on_path("ptxas"));
    if found.is_none() {
        NOTICE.call_once(|| eprintln!("ptxas is neither on the PATH nor named by FP8C_PTXAS: no kernel is assembled"));
    }
    found
}

fn nvdisasm(ptxas: &Path) -> Option<PathBuf> {
    static NOTICE: Once = Once::new();
    let found = Some(ptxas.with_file_name("nvdisasm")).filter(|p| p.is_file()).or_else(|| on_path("nvdisasm"));
    if found.is_none() {
        NOTICE.call_once(|| eprintln!("nvdisasm is neither beside ptxas nor on the PATH: no machine code is looked at"));
    }
    found
}

/// Assembles a module and returns what `ptxas -v` printed and the machine code, if there is something to read it with.
fn assemble(module: &Module, arch: Arch) -> Option<(String, Option<String>)> {
    let ptxas = ptxas()?;
    let file = tempfile::NamedTempFile::with_suffix(".ptx").unwrap();
    let binary = tempfile::NamedTempFile::with_suffix(".cubin").unwrap();
    std::fs::write(file.path(), &module.text).unwrap();
    let arch = format!("-arch={}", arch.cpu());
    let output = Command::new(&ptxas).arg("-v").arg(arch).arg(file.path()).arg("-o").arg(binary.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "ptxas refused:\n{said}\n{}", module.text);
    let code = nvdisasm(&ptxas).map(|nvdisasm| {
        let output = Command::new(nvdisasm).arg("-c").arg(binary.path()).output().unwrap();
        assert!(output.status.success(), "nvdisasm refused: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    Some((said, code))
}

/// Asserts that ptxas takes a module without warnings on `wgmma`, spills or a stack frame; returns the machine code.
fn accept(name: &str, module: &Module, arch: Arch) -> Option<String> {
    assert!(module.launches.iter().all(|l| module.text.contains(&format!(".entry {}(", l.entry))), "{name}: an entry is missing");
    let (said, code) = assemble(module, arch)?;
    // C75xx: wgmma is serialised, or waits are injected, or setmaxnreg is ignored.
    assert!(!said.contains("C75"), "{name} for {}:\n{said}", arch.cpu());
    let clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    let frames = said.lines().filter(|l| l.contains("stack frame"));
    frames.for_each(|l| assert!(l.contains(clean), "{name} for {}: {l}\n{said}\n{}", arch.cpu(), module.text));
    let registers = said.split("Used ").skip(1).filter_map(|s| s.split(' ').next()).collect::<Vec<_>>().join(", ");
    eprintln!("{name:40} {:8} {:5} lines, registers {registers}", arch.cpu(), module.text.lines().count());
    code
}

/// Generates a kernel for both chips and asserts that ptxas takes it without spills, without a stack frame and without complaint.
pub fn check(name: &str, kernel: &Kernel) {
    for arch in ARCHS {
        let module = generate(kernel, name, arch).unwrap_or_else(|e| panic!("{name}: {e}"));
        let code = accept(name, &module, arch);
        let product = matches!(kernel, Kernel::Contract(_) | Kernel::ScaledContract(_));
        if let Some(code) = code.filter(|_| product && arch == Arch::Sm90a) {
            on_wgmma(name, &module.text, &code);
        }
    }
}

/// [`check`] of a product for sm_90a with a given tile.
pub fn check_tiled(name: &str, kernel: &Kernel, tile: Tile) {
    let module = generate_tiled(kernel, name, tile).unwrap_or_else(|e| panic!("{name}: {e}"));
    if let Some(code) = accept(name, &module, Arch::Sm90a) {
        on_wgmma(name, &module.text, &code);
    }
}

/// Asserts that machine code has the warpgroup products of its PTX and no other way to multiply on tensor cores.
fn on_wgmma(name: &str, text: &str, code: &str) {
    for (written, machine) in [(".f32.e4m3.e4m3", "QGMMA."), (".f32.bf16.bf16", "HGMMA.")] {
        let lines = text.lines().filter(|l| l.starts_with("wgmma.mma_async") && l.contains(written));
        let have = code.lines().filter(|l| l.contains(machine)).count();
        assert_eq!(have, lines.count(), "{name}: {machine}");
    }
    if text.contains("wgmma.mma_async") {
        let other = ["HMMA", "QMMA", "LDL", "STL"].into_iter().find(|o| code.contains(o));
        assert_eq!(other, None, "{name}");
        // A bf16 product of codes converts them as it loads them, and says so; no other may.
        assert!(text.contains(".e4m3x2") || !code.contains("UNPACK"), "{name} unpacks codes");
    }
}

#[test]
fn the_same_kernel_gives_the_same_bytes() {
    for (name, kernel) in super::programs::all() {
        let texts = ARCHS.map(|arch| (generate(&kernel, &name, arch).unwrap().text, generate(&kernel, &name, arch).unwrap().text));
        assert!(texts.iter().all(|(a, b)| a == b), "{name}");
    }
}
