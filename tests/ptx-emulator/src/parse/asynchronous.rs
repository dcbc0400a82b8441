//! Instructions of sm_90's asynchronous machinery: `mbarrier`, bulk copies, `wgmma`, clusters.

use super::{Address, Parser, Source, braced};
use crate::Fault;

#[derive(Clone, Debug)]
pub(crate) enum Async {
    Init {
        at: Address,
        count: Source,
    },
    Invalidate {
        at: Address,
    },
    /// Arrives `count` times and, before it, expects `bytes`.
    Arrive {
        at: Address,
        count: Source,
        bytes: Source,
    },
    Expect {
        at: Address,
        bytes: Source,
    },
    TryWait {
        to: usize,
        at: Address,
        parity: Source,
    },
    BulkCopy {
        to: Address,
        from: Address,
        bytes: Source,
        barrier: Address,
        blocks: Option<Source>,
    },
    /// `fence.proxy.async`.
    ProxyFence,
    /// `fence.mbarrier_init`.
    InitFence,
    MultiplyFence,
    Multiply(Product),
    CommitProducts,
    WaitProducts {
        pending: u64,
    },
    MaxRegisters {
        count: u64,
        more: bool,
    },
    Elect {
        lane: Option<usize>,
        to: usize,
    },
    MapShared {
        to: usize,
        from: Source,
        block: Source,
    },
    ClusterArrive,
    ClusterWait,
}

/// Where an operand of `wgmma` is.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    Descriptor(Source),
    Registers([Source; 4]),
}

/// `wgmma.mma_async` of 64 x n with 32 bytes of depth.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub n: usize,
    /// E4M3 codes; else bf16.
    pub codes: bool,
    pub sums: Vec<usize>,
    pub a: Matrix,
    pub b: Source,
    /// Whether the sums are added to, else overwritten.
    pub accumulates: Source,
    /// Signs of the operands: -1 negates.
    pub signs: [Source; 2],
    /// Operands that are contiguous along their rows instead of the depth.
    pub transposed: [bool; 2],
}

impl Product {
    /// Accumulators and registers of the left operand.
    pub fn registers(&self) -> Vec<usize> {
        self.sums.iter().copied().chain(self.inputs()).collect()
    }

    /// Registers of the left operand.
    pub fn inputs(&self) -> Vec<usize> {
        let Matrix::Registers(a) = &self.a else { return vec![] };
        a.iter().filter_map(|s| if let Source::Register(r) = s { Some(*r) } else { None }).collect()
    }
}

impl Parser<'_> {
    /// The instruction; None if it is not one of these.
    pub(super) fn asynchronous(&self, name: &str, args: &[&str]) -> Result<Option<Async>, Fault> {
        let known = match name.split('.').next() {
            Some("mbarrier") => self.barrier(name, args)?,
            Some("wgmma") => self.matrix(name, args)?,
            Some("cp") if name.starts_with("cp.async.bulk.") => self.bulk(name, args)?,
            _ => return self.control(name, args),
        };
        known.map_or_else(|| self.fault(format!("{name} with {} operands is not emulated", args.len())), |k| Ok(Some(k)))
    }

    fn barrier(&self, name: &str, args: &[&str]) -> Result<Option<Async>, Fault> {
        // Scopes of a release or an acquire are at least the block, which is all that is told apart.
        let plain: Vec<&str> = name.split('.').filter(|p| !matches!(*p, "release" | "acquire" | "relaxed" | "cta" | "cluster")).collect();
        let plain: Vec<&str> = plain.into_iter().filter(|p| !matches!(*p, "shared" | "shared::cta" | "shared::cluster")).collect();
        Ok(Some(match (plain.as_slice(), args) {
            (["mbarrier", "init", "b64"], [at, count]) => Async::Init { at: self.address(at)?, count: self.source(count)? },
            (["mbarrier", "inval", "b64"], [at]) => Async::Invalidate { at: self.address(at)? },
            (["mbarrier", "arrive", "b64"], [_, at, count @ ..]) if count.len() < 2 => {
                let count = count.first().map_or(Ok(Source::Constant(1)), |c| self.source(c))?;
                Async::Arrive { at: self.address(at)?, count, bytes: Source::Constant(0) }
            }
            (["mbarrier", "arrive", "expect_tx", "b64"], [_, at, bytes]) => {
                Async::Arrive { at: self.address(at)?, count: Source::Constant(1), bytes: self.source(bytes)? }
            }
            (["mbarrier", "expect_tx", "b64"], [at, bytes]) => Async::Expect { at: self.address(at)?, bytes: self.source(bytes)? },
            (["mbarrier", "try_wait" | "test_wait", "parity", "b64"], [to, at, parity, ..]) => {
                Async::TryWait { to: self.register(to)?, at: self.address(at)?, parity: self.source(parity)? }
            }
            _ => return Ok(None),
        }))
    }

    fn bulk(&self, name: &str, args: &[&str]) -> Result<Option<Async>, Fault> {
        let Some(rest) = name.strip_prefix("cp.async.bulk.shared::") else { return Ok(None) };
        let Some((_, rest)) = rest.split_once(".global.mbarrier::complete_tx::bytes") else { return Ok(None) };
        let ([to, from, bytes, barrier], blocks) = match (rest, args) {
            ("", [a, b, c, d]) => ([a, b, c, d], None),
            (".multicast::cluster", [a, b, c, d, mask]) => ([a, b, c, d], Some(self.source(mask)?)),
            _ => return Ok(None),
        };
        let (to, from, barrier) = (self.address(to)?, self.address(from)?, self.address(barrier)?);
        Ok(Some(Async::BulkCopy { to, from, bytes: self.source(bytes)?, barrier, blocks }))
    }

    fn matrix(&self, name: &str, args: &[&str]) -> Result<Option<Async>, Fault> {
        Ok(Some(match (name, args) {
            ("wgmma.fence.sync.aligned", []) => Async::MultiplyFence,
            ("wgmma.commit_group.sync.aligned", []) => Async::CommitProducts,
            ("wgmma.wait_group.sync.aligned", [pending]) => match self.source(pending)? {
                Source::Constant(pending) => Async::WaitProducts { pending },
                Source::Register(_) => return Ok(None),
            },
            (_, [sums, a, b, accumulates, sign_a, sign_b, transposed @ ..]) => {
                let Some(shape) = name.strip_prefix("wgmma.mma_async.sync.aligned.m64n") else { return Ok(None) };
                let (n, codes) = match shape.split_once('k') {
                    Some((n, "16.f32.bf16.bf16")) => (n, false),
                    Some((n, "32.f32.e4m3.e4m3")) => (n, true),
                    _ => return Ok(None),
                };
                let Some(n) = n.parse().ok().filter(|n: &usize| n.is_multiple_of(8) && (8..=256).contains(n)) else { return Ok(None) };
                let sums = braced(sums).iter().map(|t| self.register(t)).collect::<Result<Vec<_>, _>>()?;
                let a = match a.starts_with('{') {
                    true => Matrix::Registers(self.sources(&braced(a))?),
                    false => Matrix::Descriptor(self.source(a)?),
                };
                let from_registers = matches!(a, Matrix::Registers(_));
                let transposed = match (codes, from_registers, transposed) {
                    (true, _, []) => [false, false],
                    (false, true, [b]) => [false, *b == "1"],
                    (false, false, [a, b]) => [*a == "1", *b == "1"],
                    _ => return Ok(None),
                };
                if sums.len() != n / 2 {
                    return self.fault(format!("{name} with {} accumulators", sums.len()));
                }
                let signs = [self.source(sign_a)?, self.source(sign_b)?];
                let (b, accumulates) = (self.source(b)?, self.source(accumulates)?);
                Async::Multiply(Product { n, codes, sums, a, b, accumulates, signs, transposed })
            }
            _ => return Ok(None),
        }))
    }

    fn control(&self, name: &str, args: &[&str]) -> Result<Option<Async>, Fault> {
        Ok(Some(match (name, args) {
            ("fence.proxy.async" | "fence.proxy.async.shared::cta" | "fence.proxy.async.global", []) => Async::ProxyFence,
            ("fence.mbarrier_init.release.cluster", []) => Async::InitFence,
            ("setmaxnreg.inc.sync.aligned.u32" | "setmaxnreg.dec.sync.aligned.u32", [count]) => match self.source(count)? {
                Source::Constant(count) => Async::MaxRegisters { count, more: name.contains("inc") },
                Source::Register(_) => return self.fault("setmaxnreg of a variable number"),
            },
            ("elect.sync", [to, "-1" | "0xffffffff" | "0xFFFFFFFF"]) => {
                let Some((lane, to)) = to.split_once('|') else { return self.fault("elect.sync without a predicate") };
                Async::Elect { lane: self.target(lane)?, to: self.register(to)? }
            }
            ("mapa.shared::cluster.u32" | "mapa.shared::cluster.u64", [to, from, block]) => {
                Async::MapShared { to: self.register(to)?, from: self.source(from)?, block: self.source(block)? }
            }
            (_, []) if name.starts_with("barrier.cluster.arrive") => Async::ClusterArrive,
            (_, []) if name.starts_with("barrier.cluster.wait") => Async::ClusterWait,
            _ => return Ok(None),
        }))
    }
}
