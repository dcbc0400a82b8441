//! Faults planted in the text of products for sm_90a: the interpreter has to find each.

use super::agree::{arguments, emulate, on_cpu};
use fp8c_kernels::DType;
use fp8c_kernels::program::{Epilogue, Kernel, ScaleGroup, ScaledContract};
use fp8c_kernels::ptx::{Module, Tile, generate_tiled};

/// Which of the lines that contain a pattern are changed.
#[derive(Clone, Copy)]
enum Which {
    All,
    First,
    Second,
    Last,
}
use Which::{All, First, Last, Second};

/// How a line is changed.
#[derive(Clone, Copy)]
enum Change {
    Drop,
    Replace(&'static str, &'static str),
    /// A `try_wait` becomes one that says yes at once.
    Impatient,
    /// A `try_wait` waits for the other parity.
    Parity,
    /// Matrix descriptors lose some bits.
    Descriptor(u64),
}
use Change::{Descriptor, Drop, Impatient, Parity, Replace};

/// A fault: lines with a pattern, what happens to them, and what the interpreter says; "" where only the numbers are wrong.
struct Fault(&'static str, Which, &'static str, Change, &'static str);

const FAULTS: [Fault; 24] = [
    Fault("copies reach wgmma without a proxy fence", All, "fence.proxy.async", Drop, "fence.proxy.async"),
    Fault("wgmma without wgmma.fence", All, "wgmma.fence", Drop, "wgmma.fence"),
    Fault("products that no group holds", All, "wgmma.commit_group", Drop, "under way"),
    Fault("results read without a wait", All, "wgmma.wait_group", Drop, "under way"),
    Fault("results read one group early", All, "wgmma.wait_group", Replace("aligned 0", "aligned 1"), "under way"),
    Fault("a stage announced one copy early", First, "cp.async.wait_group", Replace("group \t1", "group \t2"), "undefined"),
    Fault("copies that no group holds", All, "cp.async.commit_group", Drop, "undefined"),
    Fault("a stage never announced", First, "mbarrier.arrive", Drop, "never ends"),
    Fault("a stage never freed", Second, "mbarrier.arrive", Drop, "never ends"),
    Fault("a stage used before it is announced", Last, "mbarrier.try_wait", Impatient, ""),
    Fault("a stage reused before it is freed", First, "mbarrier.try_wait", Impatient, ""),
    Fault("the wrong parity of a full stage", Last, "mbarrier.try_wait", Parity, ""),
    Fault("the wrong parity of an empty stage", First, "mbarrier.try_wait", Parity, "never ends"),
    Fault("one announcement too many expected", All, "mbarrier.init", Replace(", 128;", ", 129;"), "never ends"),
    Fault("one release too few expected", All, "mbarrier.init", Replace(", 8;", ", 7;"), ""),
    Fault("barriers used before they exist", First, "bar.sync", Drop, ""),
    Fault("a stage freed before all lanes have its scales", All, "bar.warp.sync", Drop, "races"),
    Fault("registers never given up", All, "setmaxnreg.dec", Drop, "waits for registers"),
    Fault("more registers than there are", All, "setmaxnreg.inc", Replace("224", "240"), "waits for registers"),
    Fault("a product on top of the last", All, "wgmma.mma_async", Replace(", 0, 1, 1;", ", 1, 1, 1;"), ""),
    Fault("a product that forgets the slices before", Last, "wgmma.mma_async", Replace(", 1, 1, 1;", ", 0, 1, 1;"), ""),
    Fault("descriptors without swizzle", All, "46116862933388492", Descriptor(3 << 62), ""),
    Fault("a slice one chunk too far", All, "849284;", Replace("849284", "849285"), ""),
    Fault("lanes that keep their own columns", All, "shfl.sync.bfly", Replace(", 1, 31", ", 0, 31"), ""),
];

fn planted(text: &str, Fault(name, which, pattern, change, _): &Fault) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let with: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(pattern)).collect();
    let chosen = match which {
        All => with.clone(),
        First => with.first().copied().into_iter().collect(),
        Second => with.get(1).copied().into_iter().collect(),
        Last => with.last().copied().into_iter().collect(),
    };
    let changed = |line: &str| {
        let operands: Vec<&str> = line.split([' ', '\t', ',', ';']).filter(|w| w.starts_with('%')).collect();
        match change {
            Drop => String::new(),
            Replace(from, to) => line.replace(from, to),
            Impatient => format!("mov.pred {}, -1;", operands[0]),
            Descriptor(bits) => {
                let without = |word: &str| match word.trim_end_matches(';').parse::<u64>() {
                    Ok(d) => format!("{};", d & !bits),
                    Err(_) => word.to_string(),
                };
                line.split(' ').map(without).collect::<Vec<_>>().join(" ")
            }
            Parity => {
                let parity = operands[operands.len() - 1];
                format!("xor.b32 {parity}, {parity}, 1;\n{line}\nxor.b32 {parity}, {parity}, 1;")
            }
        }
    };
    let line = |(i, line): (usize, &&str)| if chosen.contains(&i) { changed(line) } else { line.to_string() };
    let wrong = lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\n");
    assert!(wrong.trim_end() != text.trim_end(), "{name}: nothing is planted");
    wrong
}

#[test]
fn every_planted_fault_is_found() {
    let product = ScaledContract { m: 128, n: 64, k: 1024, b_scales: ScaleGroup::Row, c: DType::Bf16, epilogue: Epilogue::default() };
    let kernel = Kernel::ScaledContract(product);
    let right = generate_tiled(&kernel, "product", Tile { groups: 2, fragments: 1, n: 64, stages: 3 }).unwrap();
    let args = arguments(&kernel, 1);
    let want = on_cpu(&kernel, &args);
    let off = |have: &[Vec<u8>]| {
        let value = |b: &[u8]| f32::from_bits((u16::from_le_bytes([b[0], b[1]]) as u32) << 16);
        let (have, want) = (have[4].chunks(2).map(value), want[4].chunks(2).map(value));
        have.zip(want).filter(|(h, w)| (h - w).abs() > 0.02 * w.abs() + 0.05).count()
    };
    let (have, _) = emulate(&kernel, &right, &args).unwrap_or_else(|fault| panic!("{fault}\n{}", right.text));
    assert_eq!(off(&have), 0);
    let mut missed = vec![];
    for fault in &FAULTS {
        let wrong = Module { text: planted(&right.text, fault), ..right.clone() };
        let Fault(name, .., says) = fault;
        let found = match emulate(&kernel, &wrong, &args) {
            Err(found) => found.reason,
            Ok((have, _)) => format!("{} wrong numbers", off(&have)),
        };
        eprintln!("{name}: {found}");
        if !found.contains(says) || found.starts_with("0 wrong") {
            missed.push((*name, found));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
