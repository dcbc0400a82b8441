//! Faults planted in a product on `wgmma` that bulk copies feed, and in a cluster's multicast, each in a program that is right without it.

use fp8c_ptx_emulator::{Buffer, Contents, Counts, Fault, Launch, Program, run};

const STEPS: usize = 3;

/// C (64 x 8, f32) = A (64 x 384) times B (8 x 384), E4M3, in panels of 128 of the depth as 128-byte-swizzled shared memory has them.
///
/// Thread 0 brings the panels through one stage; `full` is at 9216, `empty` at 9224.
fn product() -> String {
    let descriptor = |start: u64| 1u64 << 62 | 64 << 32 | 1 << 16 | start >> 4;
    let multiply = |slice: u64| {
        let (a, b) = (descriptor(32 * slice), descriptor(8192 + 32 * slice));
        let adds = if slice == 0 { "%p4" } else { "1" };
        format!("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {{%f1, %f2, %f3, %f4}}, {a}, {b}, {adds}, 1, 1;")
    };
    let multiplies = (0..4).map(multiply).collect::<Vec<_>>().join("\n");
    format!(
        ".visible .entry k(
    .param .u64 k_param_0,
    .param .u64 k_param_1,
    .param .u64 k_param_2
)
{{
.shared .align 1024 .b8 k_shared[9232];
mov.u32 %r1, %tid.x;
ld.param.b64 %rd1, [k_param_0];
ld.param.b64 %rd2, [k_param_1];
ld.param.b64 %rd3, [k_param_2];
setp.eq.s32 %p1, %r1, 0;
@!%p1 bra $L_ready;
mbarrier.init.shared::cta.b64 [k_shared+9216], 1;
mbarrier.init.shared::cta.b64 [k_shared+9224], 128;
fence.mbarrier_init.release.cluster;
$L_ready:
bar.sync 0;
mov.b32 %r2, 0;
$L_step:
and.b32 %r3, %r2, 1;
setp.ne.s32 %p4, %r2, 0;
@!%p1 bra $L_wait;
xor.b32 %r4, %r3, 1;
$L_empty:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [k_shared+9224], %r4;
@!%p2 bra $L_empty;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [k_shared+9216], 9216;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [k_shared], [%rd1], 8192, [k_shared+9216];
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [k_shared+8192], [%rd2], 1024, [k_shared+9216];
add.s64 %rd1, %rd1, 8192;
add.s64 %rd2, %rd2, 1024;
$L_wait:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [k_shared+9216], %r3;
@!%p2 bra $L_wait;
wgmma.fence.sync.aligned;
{multiplies}
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
mbarrier.arrive.shared::cta.b64 _, [k_shared+9224];
add.s32 %r2, %r2, 1;
setp.lt.s32 %p3, %r2, {STEPS};
@%p3 bra $L_step;
shr.u32 %r5, %r1, 5;
and.b32 %r6, %r1, 31;
shr.u32 %r7, %r6, 2;
mad.lo.s32 %r8, %r5, 16, %r7;
and.b32 %r9, %r1, 3;
mul.lo.s32 %r10, %r9, 8;
mad.lo.s32 %r11, %r8, 32, %r10;
cvt.u64.u32 %rd4, %r11;
add.s64 %rd5, %rd3, %rd4;
st.global.v2.b32 [%rd5], {{%f1, %f2}};
st.global.v2.b32 [%rd5+256], {{%f3, %f4}};
ret;
}}
"
    )
}

fn code(row: usize, k: usize, salt: usize) -> u8 {
    // Small whole numbers, either sign: sums are exact.
    [0x00, 0x38, 0x40, 0x44, 0xb8, 0xc0][(row * 7 + k * 5 + salt + row * k) % 6]
}

fn value(code: u8) -> f32 {
    [(0x00, 0.0), (0x38, 1.0), (0x40, 2.0), (0x44, 3.0), (0xb8, -1.0), (0xc0, -2.0)].iter().find(|c| c.0 == code).unwrap().1
}

/// Panels of a matrix: 16-byte chunk c of a row at place c xor (row mod 8).
fn panels(rows: usize, salt: usize) -> Vec<u8> {
    let mut out = vec![0; STEPS * rows * 128];
    for (panel, row, k) in (0..STEPS).flat_map(|p| (0..rows).flat_map(move |r| (0..128).map(move |k| (p, r, k)))) {
        let place = (k / 16) ^ (row % 8);
        out[(panel * rows + row) * 128 + place * 16 + k % 16] = code(row, panel * 128 + k, salt);
    }
    out
}

fn outcome(text: &str) -> Result<(Vec<f32>, Counts), Fault> {
    let program = Program::parse(text)?;
    let read = |bytes| Buffer { bytes, contents: Contents::ReadOnly };
    let mut buffers = [read(panels(64, 1)), read(panels(8, 2)), Buffer { bytes: vec![0; 64 * 8 * 4], contents: Contents::Undefined }];
    let counts = run(&program, &Launch { entry: "k", blocks: 1, threads: 128, shared_bytes: 0 }, &mut buffers)?;
    let floats = buffers[2].bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok((floats, counts))
}

fn expected() -> Vec<f32> {
    let product = |i: usize, j: usize| (0..STEPS * 128).map(|k| value(code(i, k, 1)) * value(code(j, k, 2))).sum();
    (0..64).flat_map(|i| (0..8).map(move |j| product(i, j))).collect()
}

#[test]
fn a_product_fed_by_bulk_copies_is_right_and_counted() {
    let (have, counts) = outcome(&product()).unwrap();
    assert_eq!(have, expected());
    assert_eq!(counts.products["wgmma.e4m3"], 64 * 8 * 384);
    assert_eq!((counts.bulk_copies, counts.global_reads.bytes), (6, 3 * 9216));
    assert_eq!(counts.global_reads.sectors, counts.global_reads.least_sectors);
    // Eight bytes of four lanes are a sector.
    assert_eq!((counts.global_writes.sectors, counts.global_writes.least_sectors), (64, 64));
}

/// What is planted: its name, what it replaces by what, and what the fault says; "" where only the numbers are wrong.
const FAULTS: [(&str, &str, &str, &str); 22] = [
    ("no wait for the copies", "@!%p2 bra $L_wait;", "", "under way"),
    ("wrong parity of full", "[k_shared+9216], %r3;", "[k_shared+9216], %r4;", "races"),
    ("wrong parity of empty", "[k_shared+9224], %r4;", "[k_shared+9224], %r3;", "never ends"),
    ("stage reused early", "@!%p2 bra $L_empty;", "", "races"),
    (
        "no expected bytes",
        "arrive.expect_tx.shared::cta.b64 _, [k_shared+9216], 9216;",
        "arrive.shared::cta.b64 _, [k_shared+9216];",
        "under way",
    ),
    ("too few expected bytes", "9216], 9216;", "9216], 8192;", "more to an mbarrier"),
    ("too many expected bytes", "9216], 9216;", "9216], 10240;", "1024 bytes"),
    ("one copy less", "[k_shared+8192], [%rd2], 1024, [k_shared+9216]", "[k_shared+8192], [%rd2], 512, [k_shared+9216]", "512 bytes"),
    ("no release of the stage", "mbarrier.arrive.shared::cta.b64 _, [k_shared+9224];", "", "never ends"),
    (
        "release before the wait",
        "wgmma.wait_group.sync.aligned 0;\nmbarrier.arrive.shared::cta.b64 _, [k_shared+9224];",
        "mbarrier.arrive.shared::cta.b64 _, [k_shared+9224];\nwgmma.wait_group.sync.aligned 0;",
        "races",
    ),
    ("one arrival too many is counted", "[k_shared+9224], 128;", "[k_shared+9224], 129;", "lacks 1 arrivals"),
    ("one arrival too few is counted", "[k_shared+9224], 128;", "[k_shared+9224], 127;", "races"),
    ("barriers used before they are made", "bar.sync 0;", "", "no mbarrier"),
    ("barriers unknown to the asynchronous proxy", "fence.mbarrier_init.release.cluster;", "", "no fence has made known"),
    ("no wgmma.fence", "wgmma.fence.sync.aligned;", "", "wgmma.fence"),
    ("no commit", "wgmma.commit_group.sync.aligned;", "", "under way"),
    ("no wait for the group", "wgmma.wait_group.sync.aligned 0;", "", "under way"),
    ("wait for all groups but one", "wait_group.sync.aligned 0;", "wait_group.sync.aligned 1;", "under way"),
    ("accumulator touched in flight", "wgmma.commit_group", "mov.b32 %f9, %f1;\nwgmma.commit_group", "under way"),
    ("sums start with what was there", "setp.ne.s32 %p4, %r2, 0;", "setp.eq.s32 %p4, %r2, 0;", ""),
    ("only one warp multiplies", "wgmma.fence.sync", "setp.ge.s32 %p5, %r1, 32;\n@%p5 bra $L_skip;\nwgmma.fence.sync", "warp"),
    ("no swizzle in the descriptors", "46117", "", ""),
];

fn planted(name: &str, from: &str, to: &str) -> String {
    let right = product();
    let wrong = match name {
        "only one warp multiplies" => right.replace(from, to).replace(
            "mbarrier.arrive.shared::cta.b64 _, [k_shared+9224];",
            "$L_skip:\nmbarrier.arrive.shared::cta.b64 _, [k_shared+9224];",
        ),
        "no swizzle in the descriptors" => {
            let unswizzled = |word: &str| match word.trim_end_matches(',').parse::<u64>() {
                Ok(d) if d >> 62 == 1 => format!("{},", d & !(3 << 62)),
                _ => word.to_string(),
            };
            right.lines().map(|l| l.split(' ').map(unswizzled).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
        }
        _ => right.replace(from, to),
    };
    assert_ne!(right, wrong, "{name}: nothing is planted");
    wrong
}

#[test]
fn every_planted_fault_is_found() {
    let mut missed = vec![];
    for (name, from, to, says) in FAULTS {
        let found = match outcome(&planted(name, from, to)) {
            Err(fault) => fault.reason,
            Ok((have, _)) if have != expected() => "wrong numbers".into(),
            Ok(_) => "nothing".into(),
        };
        if !found.contains(says) || found == "nothing" {
            missed.push((name, found));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Block 0 of a cluster of two brings 256 bytes to both; each writes what it got to its half of the buffer.
const MULTICAST: &str = ".visible .entry k(
    .param .u64 k_param_0,
    .param .u64 k_param_1
)
.reqnctapercluster 2
{
.shared .align 128 .b8 k_shared[264];
mov.u32 %r1, %tid.x;
mov.u32 %r2, %cluster_ctarank;
ld.param.b64 %rd1, [k_param_0];
ld.param.b64 %rd2, [k_param_1];
setp.eq.s32 %p1, %r1, 0;
@!%p1 bra $L_ready;
mbarrier.init.shared::cta.b64 [k_shared+256], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [k_shared+256], 256;
$L_ready:
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
setp.eq.s32 %p2, %r2, 0;
and.pred %p3, %p1, %p2;
@!%p3 bra $L_wait;
mov.b16 %rs1, 3;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [k_shared], [%rd1], 256, [k_shared+256], %rs1;
$L_wait:
mbarrier.try_wait.parity.shared::cta.b64 %p4, [k_shared+256], 0;
@!%p4 bra $L_wait;
mul.lo.s32 %r3, %r1, 8;
mov.b64 %rd3, k_shared;
cvt.u64.u32 %rd4, %r3;
add.s64 %rd5, %rd3, %rd4;
ld.shared.b64 %rd6, [%rd5];
mad.lo.s32 %r4, %r2, 256, %r3;
cvt.u64.u32 %rd7, %r4;
add.s64 %rd8, %rd2, %rd7;
st.global.b64 [%rd8], %rd6;
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
ret;
}
";

fn multicast(text: &str) -> Result<Vec<u8>, Fault> {
    let program = Program::parse(text)?;
    let from = Buffer { bytes: (0..=255).collect(), contents: Contents::ReadOnly };
    let mut buffers = [from, Buffer { bytes: vec![0; 512], contents: Contents::Undefined }];
    run(&program, &Launch { entry: "k", blocks: 2, threads: 32, shared_bytes: 0 }, &mut buffers)?;
    let [_, to] = buffers;
    Ok(to.bytes)
}

#[test]
fn a_multicast_reaches_every_block_of_the_cluster_that_is_ready_for_it() {
    let twice: Vec<u8> = (0..=255).chain(0..=255).collect();
    assert_eq!(multicast(MULTICAST).unwrap(), twice);
    let start = "$L_ready:\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;";
    let early = multicast(&MULTICAST.replace(start, "$L_ready:\nbar.sync 0;")).unwrap_err();
    assert!(early.reason.contains("mbarrier"), "{early}");
    let one = multicast(&MULTICAST.replace("mov.b16 %rs1, 3;", "mov.b16 %rs1, 1;")).unwrap_err();
    assert!(one.reason.contains("256 bytes"), "{one}");
}

#[test]
fn registers_are_given_back_before_others_take_them() {
    let text = |less: &str| {
        format!(
            ".visible .entry k(\n.param .u64 k_param_0\n)\n{{\nmov.u32 %r1, %tid.x;\nsetp.lt.s32 %p1, %r1, 128;\n@%p1 bra $L_few;\n\
             setmaxnreg.inc.sync.aligned.u32 232;\nret;\n$L_few:\n{less}\nret;\n}}\n"
        )
    };
    let outcome = |less: &str| {
        let program = Program::parse(&text(less))?;
        let mut buffers = [Buffer { bytes: vec![0; 4], contents: Contents::ReadOnly }];
        run(&program, &Launch { entry: "k", blocks: 1, threads: 384, shared_bytes: 0 }, &mut buffers)
    };
    assert!(outcome("setmaxnreg.dec.sync.aligned.u32 40;").is_ok());
    assert!(outcome("").unwrap_err().reason.contains("waits for registers"));
}
