//! LLVM modules: from an entry point's signature to PTX text.
//!
//! One [`Emitter`] makes the module of one kernel. Its context is its own, so that kernels generate in parallel.

use super::Arch;
use super::build::Build;
use super::heuristics::Tile;
use crate::KernelError;
use crate::launch::Launch;
use crate::program::{Arg, Mode};
use inkwell::AddressSpace;
use inkwell::OptimizationLevel;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use inkwell::types::BasicMetadataTypeEnum;
use inkwell::values::FunctionValue;
use std::cell::RefCell;
use std::sync::Once;

/// LLVM's number for the `ptx_kernel` calling convention.
const PTX_KERNEL: u32 = 71;

/// PTX 8.4 is the oldest with E4M3 `mma.sync`; drivers from 550 on load it.
const PTX_FEATURE: &str = "+ptx84";

/// Cheap clean-up before instruction selection: cells become registers, common addresses are shared.
const PASSES: &str = "function(mem2reg,early-cse,instcombine<no-verify-fixpoint>,simplifycfg,early-cse)";

/// Global memory's address space.
pub const GLOBAL: u16 = 1;
/// Shared memory's address space.
pub const SHARED: u16 = 3;

/// Bytes of shared memory that an entry may have without opting in at launch.
pub const STATIC_SHARED_MAX: u32 = 48 * 1024;

/// Bytes of shared memory from which an entry's registers are worth more than another block beside it.
const CROWDED: u32 = 32 * 1024;

/// Alignment that kernel arguments have, in bytes; the arena gives more.
pub const ARG_ALIGN: u64 = 16;

impl Arch {
    /// The chip's name for LLVM and `ptxas`.
    pub fn cpu(self) -> &'static str {
        match self {
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
        }
    }
}

/// The module under construction.
pub struct Emitter<'c> {
    pub ctx: &'c Context,
    pub module: Module<'c>,
    pub arch: Arch,
    /// The tile of a product on `wgmma`, if not the heuristics' choice.
    pub tile: Option<Tile>,
    machine: TargetMachine,
    launches: RefCell<Vec<Launch>>,
}

fn codegen(e: impl ToString) -> KernelError {
    KernelError::Codegen(e.to_string())
}

fn target_machine(arch: Arch) -> Result<TargetMachine, KernelError> {
    static INIT: Once = Once::new();
    INIT.call_once(|| Target::initialize_nvptx(&InitializationConfig::default()));
    let triple = TargetTriple::create("nvptx64-nvidia-cuda");
    let target = Target::from_triple(&triple).map_err(codegen)?;
    target
        .create_target_machine(&triple, arch.cpu(), PTX_FEATURE, OptimizationLevel::Default, RelocMode::Default, CodeModel::Default)
        .ok_or_else(|| KernelError::Codegen(format!("no target machine for {}", arch.cpu())))
}

impl<'c> Emitter<'c> {
    /// Starts an empty module for a chip; `tile` replaces the heuristics' choice.
    pub fn new(ctx: &'c Context, arch: Arch, tile: Option<Tile>) -> Result<Self, KernelError> {
        let machine = target_machine(arch)?;
        let module = ctx.create_module("fp8c");
        module.set_triple(&machine.get_triple());
        module.set_data_layout(&machine.get_target_data().get_data_layout());
        Ok(Emitter { ctx, module, arch, tile, machine, launches: RefCell::new(Vec::new()) })
    }

    /// Adds an entry point whose parameters are `args` and records how it is launched.
    ///
    /// `shared_bytes` beyond [`STATIC_SHARED_MAX`] become dynamic shared memory, which the launch has to ask for.
    pub fn entry(&self, name: &str, args: &[Arg], grid: u64, threads: u32, shared_bytes: u32) -> Result<Build<'c, '_>, KernelError> {
        let grid = u32::try_from(grid).ok().filter(|&g| g < 1 << 31);
        let grid = grid.ok_or_else(|| KernelError::Unsupported(format!("kernel {name} needs a grid of more than 2^31 blocks")))?;
        let pointer: BasicMetadataTypeEnum = self.ctx.ptr_type(AddressSpace::from(GLOBAL)).into();
        let function = self.module.add_function(name, self.ctx.void_type().fn_type(&vec![pointer; args.len()], false), None);
        function.set_call_conventions(PTX_KERNEL);
        self.attributes(function, args, threads, shared_bytes);
        let dynamic = if shared_bytes > STATIC_SHARED_MAX { shared_bytes } else { 0 };
        let launch = Launch { entry: name.to_string(), grid: [grid.max(1), 1, 1], block: [threads, 1, 1], shared_bytes: dynamic };
        self.launches.borrow_mut().push(launch);
        Ok(Build::new(self, function, args, shared_bytes))
    }

    /// Arguments never alias (the kernel program says so), which lets reads go through the read-only path.
    fn attributes(&self, function: FunctionValue<'c>, args: &[Arg], threads: u32, shared_bytes: u32) {
        let attribute = |name: &str, value| self.ctx.create_enum_attribute(Attribute::get_named_enum_kind_id(name), value);
        for (i, arg) in args.iter().enumerate() {
            let at = AttributeLoc::Param(i as u32);
            function.add_attribute(at, attribute("noalias", 0));
            function.add_attribute(at, attribute("align", ARG_ALIGN));
            if arg.mode == Mode::Read {
                function.add_attribute(at, attribute("readonly", 0));
            }
        }
        function.add_attribute(AttributeLoc::Function, attribute("nounwind", 0));
        let mut limits = vec![("nvvm.maxntid", threads)];
        limits.extend((shared_bytes > CROWDED).then_some(("nvvm.minctasm", 1)));
        for (key, value) in limits {
            function.add_attribute(AttributeLoc::Function, self.ctx.create_string_attribute(key, &value.to_string()));
        }
    }

    /// Verifies, optimises and prints the module.
    pub fn finish(self) -> Result<super::Module, KernelError> {
        self.module.verify().map_err(codegen)?;
        self.module.run_passes(PASSES, &self.machine, PassBuilderOptions::create()).map_err(codegen)?;
        let text = self.machine.write_to_memory_buffer(&self.module, FileType::Assembly).map_err(codegen)?;
        let text = std::str::from_utf8(text.as_slice()).map_err(codegen)?.trim_end_matches('\0').to_string();
        Ok(super::Module { text, launches: self.launches.into_inner() })
    }
}
