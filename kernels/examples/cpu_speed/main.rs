//! Prints how fast kernels run on this machine's CPU: `cargo run --release -p fp8c-kernels --example cpu_speed [filter [file]]`.
//! A file holds kernels in text form, each below a line `# title`.
//!
//! Each line is the best of a few launches on random contents, on all threads of the default pool (`RAYON_NUM_THREADS`).

use fp8c_kernels::DType;
use fp8c_kernels::cpu::{Buffer, Prepared};
use fp8c_kernels::program::*;
use std::time::{Duration, Instant};

struct Case {
    name: String,
    kernel: Kernel,
    /// Multiplications and additions, or 0 where bytes count.
    flops: f64,
}

/// Memory aligned to 64 bytes.
struct Memory {
    lines: Vec<[u64; 8]>,
    start: usize,
    bytes: usize,
}

impl Memory {
    fn new(bytes: usize) -> Memory {
        let lines = vec![[0; 8]; bytes.div_ceil(64) + 1];
        let start = lines.as_ptr().cast::<u8>().align_offset(64);
        Memory { lines, start, bytes }
    }

    fn buffer(&mut self) -> Buffer {
        Buffer { ptr: self.lines.as_mut_ptr().cast::<u8>().wrapping_add(self.start), bytes: self.bytes }
    }

    /// Numbers between -1 and 1 (indices 0, codes anything but NaN).
    fn fill(&mut self, dtype: DType) {
        let buffer = self.buffer();
        // SAFETY: the buffer is as long as it says.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.ptr, buffer.bytes) };
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        match dtype {
            DType::F32 => bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&next().to_le_bytes())),
            DType::Bf16 => bytes.chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&next().to_le_bytes()[2..])),
            DType::E4m3 => bytes.iter_mut().for_each(|b| *b = (next() * 100.0) as i8 as u8 & 0xf7),
            DType::I64 | DType::I32 | DType::Bool => bytes.fill(0),
        }
    }
}

/// Seconds of the best launch.
fn measure(kernel: &Kernel) -> f64 {
    kernel.verify().expect("a valid kernel");
    let mut memory: Vec<Memory> = kernel.args().iter().map(|a| Memory::new(a.bytes() as usize)).collect();
    memory.iter_mut().zip(kernel.args()).for_each(|(m, a)| m.fill(a.dtype));
    let prepared = Prepared::new(kernel).expect("a kernel for the CPU");
    let mut scratch = Memory::new(prepared.scratch_bytes(rayon::current_num_threads()) as usize);
    let args: Vec<Buffer> = memory.iter_mut().map(Memory::buffer).collect();
    let (mut best, start) = (f64::MAX, Instant::now());
    let mut launches = 0;
    while launches < 3 || (start.elapsed() < Duration::from_millis(700) && launches < 1000) {
        let from = Instant::now();
        // SAFETY: the buffers are as long as the kernel asks.
        unsafe { prepared.launch(&args, scratch.buffer()) }.expect("launches");
        best = best.min(from.elapsed().as_secs_f64());
        launches += 1;
    }
    best
}

fn matrix(dtype: DType, rows: u64, cols: u64, transposed: bool) -> Matrix {
    let (row_stride, col_stride) = if transposed { (1, rows) } else { (cols, 1) };
    Matrix { dtype, elements: rows * cols, offset: 0, batch_strides: vec![], row_stride, col_stride }
}

fn contracts() -> Vec<Case> {
    let shapes =
        [(2048, 512, 2048), (512, 2048, 2048), (2048, 2048, 512), (1024, 1024, 1024), (512, 768, 768), (512, 8192, 256), (64, 64, 64)];
    let mut cases = Vec::new();
    for (m, n, k) in shapes {
        for (layout, ta, tb) in [("nn", false, false), ("nt", false, true), ("tn", true, false)] {
            for (d, c) in [(DType::F32, DType::F32), (DType::Bf16, DType::Bf16), (DType::Bf16, DType::F32)] {
                let (a, b, out) = (matrix(d, m, k, ta), matrix(d, k, n, tb), matrix(c, m, n, false));
                let kernel = Kernel::Contract(Contract { batch: vec![], m, n, k, a, b, c: out, epilogue: Epilogue::default() });
                cases.push(Case { name: format!("contract {d}->{c} {layout} {m}x{n}x{k}"), kernel, flops: 2.0 * (m * n * k) as f64 });
            }
        }
        for (name, b_scales) in [("block", ScaleGroup::Block), ("row", ScaleGroup::Row)] {
            let kernel = Kernel::ScaledContract(ScaledContract { m, n, k, b_scales, c: DType::Bf16, epilogue: Epilogue::default() });
            cases.push(Case { name: format!("scaled {name} {m}x{n}x{k}"), kernel, flops: 2.0 * (m * n * k) as f64 });
        }
    }
    cases
}

fn quantizers() -> Vec<Case> {
    let layouts = [Layout::Rows, Layout::Columns, Layout::RowsAndColumns, Layout::Blocks, Layout::BlocksBoth];
    let case = |layout, source| Case {
        name: format!("quantize {source} {layout:?} 2048x2048"),
        kernel: Kernel::Quantize(Quantize { rows: 2048, cols: 2048, source, layout, power_of_two: false }),
        flops: 0.0,
    };
    layouts.into_iter().flat_map(|l| [case(l, DType::F32), case(l, DType::Bf16)]).collect()
}

fn attentions() -> Vec<Case> {
    let mut cases = Vec::new();
    for (batch, heads, kv_heads, len, depth) in [(8, 12, 12, 128, 64), (4, 8, 8, 512, 64), (1, 8, 2, 2048, 128), (8, 8, 8, 64, 32)] {
        for (dtype, causal) in [(DType::F32, true), (DType::F32, false), (DType::Bf16, true)] {
            let of =
                |h: u64| Heads { elements: batch * len * h * depth, offset: 0, batch: len * h * depth, head: depth, position: h * depth };
            let (q, kv) = (of(heads), of(kv_heads));
            let attention = Attention {
                batch,
                heads,
                kv_heads,
                q_len: len,
                kv_len: len,
                depth,
                v_depth: depth,
                scale: FloatBits((depth as f32).sqrt().recip().to_bits()),
                softcap: None,
                mask: Mask { causal, window: None, align_end: false },
                bias: None,
                dtype,
                q,
                k: kv,
                v: kv,
                o: q,
                grads: [q, q, kv, kv],
            };
            let name = format!("{dtype}{} {batch}x{heads}/{kv_heads}x{len}x{depth}", if causal { " causal" } else { "" });
            let visible = if causal { len * (len + 1) / 2 } else { len * len };
            let product = 2.0 * (batch * heads * visible * depth) as f64;
            cases.push(Case { name: format!("attention {name}"), kernel: Kernel::Attention(attention.clone()), flops: 2.0 * product });
            cases.push(Case { name: format!("attention_grad {name}"), kernel: Kernel::AttentionGrad(attention), flops: 5.0 * product });
        }
    }
    cases
}

fn convolutions() -> Vec<Case> {
    let mut cases = Vec::new();
    // batch, channels in and out, groups, extent, kernel, stride
    let shapes = [
        (8, 64, 64, 1, 56, 3, 1),
        (8, 256, 256, 1, 14, 3, 1),
        (8, 512, 512, 1, 7, 3, 1),
        (8, 3, 64, 1, 112, 7, 2),
        (8, 256, 64, 1, 56, 1, 1),
        (8, 96, 96, 96, 56, 7, 1),
    ];
    for (batch, cin, cout, groups, extent, taps, stride) in shapes {
        let pad = (taps - 1) / 2;
        let output = (extent + 2 * pad - taps) / stride + 1;
        let two = |x: u64| [x, x];
        let window =
            Window { input: two(extent), output: two(output), kernel: two(taps), stride: two(stride), dilation: two(1), pad: two(pad) };
        for (pass, dtype) in
            [ConvPass::Fprop, ConvPass::Dgrad, ConvPass::Wgrad].into_iter().flat_map(|p| [(p, DType::F32), (p, DType::Bf16)])
        {
            let kernel = Kernel::Conv(Conv { pass, batch, cin, cout, groups, window, bias: false, dtype, weight: dtype });
            let flops = 2.0 * (batch * cout * cin / groups * taps * taps * output * output) as f64;
            cases.push(Case {
                name: format!("conv {dtype} {pass:?} {batch}x{cin}x{extent} {taps}x{taps}/{stride} {cout} by {groups}"),
                kernel,
                flops,
            });
        }
    }
    cases
}

fn others() -> Vec<Case> {
    let dtype = DType::F32;
    let window = |i: u64, o: u64, k: u64, s: u64| Window {
        input: [i; 2],
        output: [o; 2],
        kernel: [k; 2],
        stride: [s; 2],
        dilation: [1; 2],
        pad: [0; 2],
    };
    let scatter = ScatterAdd {
        outer: 1,
        picks: 4096,
        inner: 768,
        extent: 8192,
        index_outer: false,
        index_inner: false,
        src: dtype,
        index: DType::I64,
        dst: dtype,
        accumulate: true,
    };
    let pool = Pool { op: PoolOp::Max, backward: false, planes: 512, window: window(56, 28, 2, 2), dtype };
    vec![
        Case { name: "scatter_add 4096x768 into 8192".into(), kernel: Kernel::ScatterAdd(scatter), flops: 0.0 },
        Case { name: "pool max 512x56x56".into(), kernel: Kernel::Pool(pool), flops: 0.0 },
        Case { name: "pool max grad 512x56x56".into(), kernel: Kernel::Pool(Pool { backward: true, ..pool }), flops: 0.0 },
        Case { name: "pool average 512x56x56".into(), kernel: Kernel::Pool(Pool { op: PoolOp::Average, ..pool }), flops: 0.0 },
        Case {
            name: "scan 64x1024x64".into(),
            kernel: Kernel::Scan(Scan { outer: 64, extent: 1024, inner: 64, exclusive: false, reverse: false, dtype }),
            flops: 0.0,
        },
    ]
}

/// Kernels in text form: blocks of a title and a listing.
fn listed(text: &str) -> Vec<Case> {
    let blocks = text.split("# ").skip(1).filter_map(|block| block.split_once('\n'));
    let case = |(name, text): (&str, &str)| Case { name: format!("listed {name}"), kernel: text.parse().expect("a kernel"), flops: 0.0 };
    blocks.map(case).collect()
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!("{} threads", rayon::current_num_threads());
    let cases = match std::env::args().nth(2) {
        Some(path) => listed(&std::fs::read_to_string(path).expect("a readable file")),
        None => {
            let groups = [contracts(), quantizers(), attentions(), convolutions(), others(), listed(include_str!("rows.txt"))];
            groups.into_iter().flatten().collect()
        }
    };
    for case in cases.into_iter().filter(|c| c.name.contains(&filter)) {
        let seconds = measure(&case.kernel);
        let bytes: u64 = case.kernel.args().iter().map(|a| if a.mode == Mode::Update { 2 * a.bytes() } else { a.bytes() }).sum();
        let rate = if case.flops > 0.0 {
            format!("{:6.1} GFLOPS", case.flops / seconds * 1e-9)
        } else {
            format!("{:6.1} GB/s", bytes as f64 / seconds * 1e-9)
        };
        println!("{:<60} {:>9.4} ms {rate}", case.name, seconds * 1e3);
    }
}
