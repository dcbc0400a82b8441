//! Instructions of sm_90a for which LLVM has no intrinsics at this PTX version, as inline assembly.

use crate::ptx::build::{Build, Float, Int, Ptr, ok};
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::types::{BasicMetadataTypeEnum, BasicType, BasicTypeEnum};
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum, CallSiteValue};

/// The form of a `wgmma` product: 64 x `n`, with 32 bytes of depth.
#[derive(Clone, Copy, Debug)]
pub struct Multiply {
    pub n: i64,
    /// Bytes of an element: 1 (E4M3) or 2 (bf16).
    pub element: i64,
    /// Operands that are contiguous along their rows instead of the depth.
    pub across: [bool; 2],
}

impl Multiply {
    /// Accumulators of a thread.
    pub fn sums(&self) -> usize {
        self.n as usize / 2
    }
}

impl<'c> Build<'c, '_> {
    /// Assembly with side effects on memory, which all threads that reach it execute together.
    fn effect(
        &self,
        text: &str,
        constraints: &str,
        result: Option<BasicTypeEnum<'c>>,
        args: &[BasicMetadataValueEnum<'c>],
    ) -> CallSiteValue<'c> {
        let types: Vec<BasicMetadataTypeEnum<'c>> =
            args.iter().filter_map(|a| BasicValueEnum::try_from(*a).ok()).map(|v| v.get_type().into()).collect();
        let ty = match result {
            Some(result) => result.fn_type(&types, false),
            None => self.e.ctx.void_type().fn_type(&types, false),
        };
        let constraints = if constraints.is_empty() { "~{memory}".to_string() } else { format!("{constraints},~{{memory}}") };
        let code = self.e.ctx.create_inline_asm(ty, text.to_string(), constraints, true, false, None, false);
        let call = ok(self.b.build_indirect_call(ty, code, args, ""));
        let convergent = Attribute::get_named_enum_kind_id("convergent");
        call.add_attribute(AttributeLoc::Function, self.e.ctx.create_enum_attribute(convergent, 0));
        call
    }

    /// Makes an `mbarrier` that waits for `count` arrivals a phase.
    pub fn init_barrier(&self, at: Ptr<'c>, count: i64) {
        self.effect("mbarrier.init.shared::cta.b64 [$0], $1;", "r,n", None, &[at.into(), self.i32(count as i32).into()]);
    }

    /// Makes initialised barriers known to the asynchronous proxy and to other blocks.
    pub fn fence_barriers(&self) {
        self.effect("fence.mbarrier_init.release.cluster;", "", None, &[]);
    }

    /// Arrives at a barrier.
    pub fn arrive(&self, at: Ptr<'c>) {
        self.effect("mbarrier.arrive.shared::cta.b64 _, [$0];", "r", None, &[at.into()]);
    }

    /// Waits until the barrier's phase of a parity is over.
    pub fn wait_barrier(&self, at: Ptr<'c>, parity: Int<'c>) {
        let text = "mbarrier.try_wait.parity.shared::cta.b64 $0, [$1], $2;";
        let over = || self.value(self.effect(text, "=b,r,r", Some(self.int_type(1).into()), &[at.into(), parity.into()])).into_int_value();
        self.while_true(|| self.not(over()), || {});
    }

    /// Orders this thread's writes to shared memory before what the asynchronous proxy does after it.
    pub fn fence_proxy(&self) {
        self.effect("fence.proxy.async.shared::cta;", "", None, &[]);
    }

    /// Gives registers up (`more` false) or asks for some: `count` a thread, for the whole warpgroup.
    pub fn max_registers(&self, count: i64, more: bool) {
        let direction = if more { "inc" } else { "dec" };
        self.effect(&format!("setmaxnreg.{direction}.sync.aligned.u32 {count};"), "", None, &[]);
    }

    /// `wgmma` on one slice of 32 bytes of depth for each pair of descriptors, added to `sums` where given, and waits for the results.
    pub fn multiply(&self, form: Multiply, slices: &[[Int<'c>; 2]], sums: Option<&[Float<'c>]>) -> Vec<Float<'c>> {
        let n = form.sums();
        let list = (0..n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
        let (depth, dtype) = if form.element == 1 { (32, "e4m3") } else { (16, "bf16") };
        let across = form.across.map(|a| if a { 1 } else { 0 });
        let order = if form.element == 1 { String::new() } else { format!(", {}, {}", across[0], across[1]) };
        let mut text = "wgmma.fence.sync.aligned;\n".to_string();
        for slice in 0..slices.len() {
            let adds = (slice > 0 || sums.is_some()) as i32;
            let (a, b) = (n + 2 * slice, n + 2 * slice + 1);
            let name = format!("wgmma.mma_async.sync.aligned.m64n{}k{depth}.f32.{dtype}.{dtype}", form.n);
            text += &format!("{name} {{{list}}}, ${a}, ${b}, {adds}, 1, 1{order};\n");
        }
        text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;";
        let mut constraints = vec!["=f".to_string(); n];
        constraints.extend(vec!["l".to_string(); 2 * slices.len()]);
        let mut args: Vec<BasicMetadataValueEnum<'c>> = slices.iter().flatten().map(|&d| d.into()).collect();
        if let Some(sums) = sums {
            constraints.extend((0..n).map(|i| i.to_string()));
            args.extend(sums.iter().map(|&s| BasicMetadataValueEnum::from(s)));
        }
        let result = self.e.ctx.struct_type(&vec![self.f32_type(); n], false).into();
        let all = self.value(self.effect(&text, &constraints.join(","), Some(result), &args));
        (0..n as u32).map(|i| self.member(all, i).into_float_value()).collect()
    }

    /// Values that are computed by here and not later, as LLVM would have them where their last use is far.
    pub fn by_now(&self, values: &[Float<'c>]) -> Vec<Float<'c>> {
        let n = values.len();
        let constraints = (0..n).map(|_| "=f".to_string()).chain((0..n).map(|i| i.to_string())).collect::<Vec<_>>().join(",");
        let result = self.e.ctx.struct_type(&vec![self.f32_type(); n], false).into();
        let args: Vec<BasicMetadataValueEnum<'c>> = values.iter().map(|&v| v.into()).collect();
        let all = self.value(self.effect("", &constraints, Some(result), &args));
        (0..n as u32).map(|i| self.member(all, i).into_float_value()).collect()
    }

    /// The descriptor of a matrix in 128-byte-swizzled shared memory: groups of eight rows are 1024 bytes apart, panels `panel` bytes.
    pub fn matrix_descriptor(&self, at: Ptr<'c>, panel: i64) -> Int<'c> {
        let address = ok(self.b.build_ptr_to_int(at, self.int_type(64), ""));
        let fields = 1 << 62 | (1024 >> 4) << 32 | (panel >> 4) << 16;
        self.or(self.shr(self.andc(address, 0x3ffff), 4), self.i64(fields))
    }
}
