//! Modules, functions and launches.

use crate::codes::Code;
use crate::driver::{Done, Driver};
use crate::queue::{Kernel, Work};
use fp8c_ptx_emulator::Program;
use std::sync::Arc;

/// An entry of a module.
pub(crate) struct Function {
    pub module: u64,
    pub entry: String,
    /// Dynamic shared memory that has been permitted, bytes.
    pub shared: u32,
}

impl Driver {
    /// Compiles PTX text for the device.
    pub fn load(&mut self, text: &str) -> Result<u64, Code> {
        self.not_capturing("loading a module")?;
        let target = text.lines().find_map(|l| l.trim().strip_prefix(".target")).unwrap_or_default();
        let target = target.split(',').next().unwrap_or_default().trim();
        if !runs_on(target, self.config.chip) {
            return self.misuse(Code::NO_BINARY_FOR_GPU, format!("PTX for {target:?} on {}", self.config.name()));
        }
        match Program::parse(text) {
            Ok(program) => {
                let handle = self.handle();
                self.modules.insert(handle, Arc::new(program));
                Ok(handle)
            }
            Err(fault) => self.misuse(Code::INVALID_PTX, format!("PTX: {fault}")),
        }
    }

    pub fn unload(&mut self, module: u64) -> Done {
        if self.modules.remove(&module).is_none() {
            return self.misuse(Code::INVALID_HANDLE, "a module is unloaded that does not exist, or no longer");
        }
        self.functions.retain(|_, f| f.module != module);
        if self.queue.pending().any(|w| matches!(w, Work::Kernel(k) if k.module == module)) {
            self.report.fault("a module is unloaded while a kernel of it is queued".into());
        }
        Ok(())
    }

    pub fn function(&mut self, module: u64, entry: &str) -> Result<u64, Code> {
        let program = self.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        if program.parameters(entry).is_none() {
            return Err(Code::NOT_FOUND);
        }
        if let Some((handle, _)) = self.functions.iter().find(|(_, f)| f.module == module && f.entry == entry) {
            return Ok(*handle);
        }
        let handle = self.handle();
        self.functions.insert(handle, Function { module, entry: entry.to_string(), shared: 48 * 1024 });
        Ok(handle)
    }

    pub fn permit_shared(&mut self, function: u64, bytes: i32) -> Done {
        let limit = self.config.shared_limit();
        let f = self.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        f.shared = u32::try_from(bytes).ok().filter(|b| *b <= limit).ok_or(Code::INVALID_VALUE)?;
        Ok(())
    }

    /// Bytes of each parameter of a function.
    pub fn parameter_sizes(&self, function: u64) -> Result<Vec<usize>, Code> {
        let f = self.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let program = self.modules.get(&f.module).ok_or(Code::INVALID_HANDLE)?;
        program.parameters(&f.entry).map(<[usize]>::to_vec).ok_or(Code::INVALID_HANDLE)
    }

    /// Queues a kernel.
    pub fn launch(&mut self, stream: u64, function: u64, grid: [u32; 3], block: [u32; 3], shared: u32, parameters: Vec<u64>) -> Done {
        let f = self.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let (entry, permitted, module) = (f.entry.clone(), f.shared, f.module);
        let program = self.modules.get(&module).cloned().ok_or(Code::INVALID_HANDLE)?;
        let shape = format!("kernel {entry}: grid {grid:?}, block {block:?}, {shared} bytes of shared memory");
        if grid[1..] != [1, 1] || block[1..] != [1, 1] {
            return self.misuse(Code::NOT_SUPPORTED, format!("{shape}: the stand-in knows one dimension"));
        }
        let fixed = program.static_shared(&entry).unwrap_or(0) as u64;
        let within = fixed + u64::from(shared) <= u64::from(self.config.shared_limit()) && shared <= permitted && fixed <= 48 * 1024;
        if grid[0] == 0 || !(1..=1024).contains(&block[0]) || !within {
            return self.misuse(Code::INVALID_VALUE, format!("{shape} (and {fixed} static): more than the device or the function permits"));
        }
        let kernel = Kernel { module, program, entry, blocks: grid[0], threads: block[0], shared_bytes: shared, parameters };
        self.queue.enqueue(stream, Work::Kernel(kernel))
    }
}

/// Whether a device runs PTX for a target: `sm_90a` on its own kind alone, others on everything later.
fn runs_on(target: &str, (major, minor): (i32, i32)) -> bool {
    let Some(name) = target.strip_prefix("sm_") else { return false };
    let (digits, exact) = name.strip_suffix('a').map_or((name, false), |d| (d, true));
    let have = major * 10 + minor;
    digits.parse().is_ok_and(|want: i32| if exact { have == want } else { have >= want })
}
