//! What the verifier refuses and accepts, and that it does so quickly.

use fp8c_kernels::DType;
use fp8c_kernels::program::*;
use std::time::{Duration, Instant};

fn access(offset: i64, strides: &[i64]) -> Access {
    Access { offset, strides: strides.to_vec(), guards: Vec::new() }
}

fn guarded(strides: &[i64], dim: u32, lower: i64, upper: i64) -> Access {
    Access { guards: vec![Guard { dim, lower, upper }], ..access(0, strides) }
}

fn arg(elements: u64, mode: Mode) -> Arg {
    Arg { dtype: DType::F32, elements, mode }
}

fn load(arg: u32, access: Access) -> Stmt {
    Stmt::Load { arg, access, indexed: None }
}

fn store(arg: u32, access: Access, x: u32) -> Stmt {
    Stmt::Store { arg, access, x: Var(x) }
}

fn program(space: &[u64], row_dims: u32, args: Vec<Arg>, body: Vec<Stmt>) -> Kernel {
    Kernel::Row(RowProgram { space: space.to_vec(), row_dims, args, body })
}

/// The reason of a refusal.
fn refusal(kernel: &Kernel) -> String {
    kernel.verify().expect_err("refused").to_string()
}

/// Rows whose second dimension is empty, with a load that only the first, of one index, could move.
fn over_an_empty_row(offset: i64) -> Kernel {
    let body = vec![
        load(0, access(offset, &[0, 5, 0])),
        Stmt::Binary { op: Binary::Add, x: Var(0), y: Var(0) },
        Stmt::Reduce { op: Fold::Sum, x: Var(1) },
        store(1, access(0, &[1, 0, 0]), 1),
    ];
    program(&[4, 1, 0], 2, vec![arg(4, Mode::Read), arg(4, Mode::Write)], body)
}

#[test]
fn an_access_that_a_row_makes_once_is_bounded_though_the_row_is_empty() {
    assert_eq!(over_an_empty_row(3).verify(), Ok(()));
    for offset in [4, -1, 1 << 40, -(1 << 40)] {
        assert!(refusal(&over_an_empty_row(offset)).contains("leaves the 4 elements"), "{offset}");
    }
}

#[test]
fn a_dimension_of_one_index_moves_nothing_whatever_its_stride() {
    for (space, strides) in [(&[3, 1][..], &[1, 9][..]), (&[3, 1, 1], &[1, -7, 1 << 50]), (&[1, 3], &[1 << 50, 1])] {
        let body = vec![load(0, access(0, strides)), store(1, access(0, strides), 0)];
        assert_eq!(program(space, 1, vec![arg(3, Mode::Read), arg(3, Mode::Write)], body).verify(), Ok(()));
    }
}

#[test]
fn nothing_is_bounded_where_there_is_no_row() {
    let body = vec![load(0, access(1 << 40, &[1, 1])), store(1, access(-9, &[1, 1]), 0)];
    assert_eq!(program(&[0, 3], 1, vec![arg(0, Mode::Read), arg(0, Mode::Write)], body).verify(), Ok(()));
}

/// A program that loads argument 0, then stores into it.
fn load_then_store(space: &[u64], elements: u64, from: Access, to: Access) -> Kernel {
    program(space, 1, vec![arg(elements, Mode::Update)], vec![load(0, from), store(0, to, 0)])
}

#[test]
fn a_point_may_store_what_it_alone_has_loaded() {
    let cases: [(&[u64], Access, Access); 5] = [
        (&[3, 5], access(0, &[5, 1]), access(0, &[5, 1])),
        (&[3, 5], access(0, &[5, 1]), guarded(&[5, 1], 1, 1, 4)),
        (&[3, 5], guarded(&[5, 1], 0, 1, 2), access(0, &[5, 1])),
        (&[1, 5], access(0, &[7, 1]), access(0, &[0, 1])),
        // Both at row 1 alone.
        (&[3, 5], guarded(&[0, 1], 0, 1, 2), guarded(&[0, 1], 0, 1, 2)),
    ];
    for (space, from, to) in cases {
        let kernel = load_then_store(space, 15, from, to);
        assert_eq!(kernel.verify(), Ok(()), "{kernel}");
    }
}

#[test]
fn a_load_that_other_points_make_of_a_stored_element_is_refused() {
    let cases: [(&[u64], Access, Access); 5] = [
        // Row 0 stores what every row loads.
        (&[3, 5], access(0, &[0, 1]), guarded(&[0, 1], 0, 0, 1)),
        (&[3, 5], guarded(&[0, 1], 0, 1, 3), guarded(&[0, 1], 0, 0, 1)),
        (&[3, 5], guarded(&[5, 0], 1, 0, 5), guarded(&[5, 0], 1, 3, 4)),
        // The next row's element.
        (&[3, 5], guarded(&[5, 1], 0, 1, 3), access(0, &[5, 1])),
        (&[3, 5], access(0, &[5, 1]), access(0, &[1, 3])),
    ];
    for (at, (space, from, mut to)) in cases.into_iter().enumerate() {
        if at == 3 {
            to.offset = 5;
        }
        let kernel = load_then_store(space, 21, from, to);
        assert!(refusal(&kernel).contains("a load may read what another point"), "case {at}: {:?}\n{kernel}", kernel.verify());
    }
}

#[test]
fn a_load_after_the_store_of_its_element_is_refused() {
    let one = |at| access(at, &[1]);
    let body = vec![load(0, one(0)), store(0, one(0), 0), load(0, one(0)), store(1, one(0), 2)];
    let kernel = program(&[4], 0, vec![arg(4, Mode::Update), arg(4, Mode::Write)], body);
    assert!(refusal(&kernel).contains("an earlier store writes"));
}

#[test]
fn a_guard_lies_inside_its_dimension() {
    for (lower, upper) in [(0, 4), (1, 5), (-1, 3), (1 << 32, 1 << 32), (0, -(1 << 32) + 3), (1 << 56, 0)] {
        // Far outside the argument, were the guard not to hold.
        let from = Access { offset: 1 << 40, ..guarded(&[1], 0, lower, upper) };
        let kernel = program(&[3], 0, vec![arg(3, Mode::Read), arg(3, Mode::Write)], vec![load(0, from), store(1, access(0, &[1]), 0)]);
        assert!(kernel.verify().is_err(), "{lower} to {upper}");
    }
    let kernel = program(
        &[3],
        0,
        vec![arg(3, Mode::Read), arg(3, Mode::Write)],
        vec![load(0, guarded(&[1 << 40], 0, 3, 0)), store(1, access(0, &[1]), 0)],
    );
    assert_eq!(kernel.verify(), Ok(()));
}

#[test]
fn strides_beyond_any_argument_are_refused_even_where_nothing_is_walked() {
    let huge = Matrix { dtype: DType::F32, elements: 0, offset: 0, batch_strides: vec![], row_stride: u64::MAX, col_stride: 1 };
    let c = Matrix { elements: 6, row_stride: 3, ..huge.clone() };
    let b = Matrix { row_stride: 1, ..huge.clone() };
    let product = |a: &Matrix| {
        Kernel::Contract(Contract {
            batch: vec![],
            m: 2,
            n: 3,
            k: 0,
            a: a.clone(),
            b: b.clone(),
            c: c.clone(),
            epilogue: Epilogue::default(),
        })
    };
    assert!(refusal(&product(&huge)).contains("too large"));
    assert_eq!(product(&Matrix { row_stride: 1 << 48, ..huge }).verify(), Ok(()));
}

#[test]
fn what_is_added_to_an_argument_is_of_its_kind() {
    let add = |kind, dtype| {
        let body = vec![Stmt::Const { kind, value: Literal::Int(1) }, Stmt::Accumulate { arg: 0, access: access(0, &[1]), x: Var(0) }];
        program(&[3], 0, vec![Arg { dtype, elements: 3, mode: Mode::Update }], body).verify()
    };
    let formats = [DType::F32, DType::Bf16, DType::E4m3, DType::I64, DType::I32, DType::Bool];
    for (kind, dtype) in [Kind::Float, Kind::Int, Kind::Bool].into_iter().flat_map(|k| formats.map(|d| (k, d))) {
        let fits = Kind::from(dtype) == kind && kind != Kind::Bool;
        assert_eq!(add(kind, dtype).is_ok(), fits, "{kind:?} into {dtype}");
    }
}

fn time(kernel: &Kernel) -> (Duration, bool) {
    let start = Instant::now();
    let verified = kernel.verify().is_ok();
    (start.elapsed(), verified)
}

/// Loads and stores of interleaved columns of one argument: every range overlaps every other.
fn interleaved(loads: i64, stores: i64, strides: impl Fn(i64) -> i64) -> Kernel {
    let columns = loads + stores;
    let of = |at: i64| access(at, &[strides(columns), 0]);
    let mut body: Vec<Stmt> = (0..loads).map(|at| load(0, of(at))).collect();
    body.extend((0..stores).map(|at| store(0, of(loads + at), (at % loads) as u32)));
    program(&[300, 1], 1, vec![arg(300 * 400 * 400, Mode::Update)], body)
}

#[test]
fn sixty_four_loads_and_stores_of_one_argument_verify_at_once() {
    let (took, verified) = time(&interleaved(64, 64, |columns| columns));
    assert!(verified && took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn the_worst_program_is_refused_at_once() {
    // Maps that nothing but counting tells apart, and as many accesses as there may be.
    let stores = (0..4000).map(|n| store(0, access(n * 600_000, &[1000, 1001]), 0));
    let body: Vec<Stmt> = [Stmt::Const { kind: Kind::Float, value: Literal::float(1.0) }].into_iter().chain(stores).collect();
    let counted = program(&[256, 240], 0, vec![arg(1 << 40, Mode::Update)], body);
    let many = interleaved(2000, 2000, |columns| columns);
    for kernel in [counted, many] {
        let (took, verified) = time(&kernel);
        assert!(!verified && took < Duration::from_millis(500), "{took:?}");
    }
}

#[test]
fn a_long_chain_of_statements_compiles_on_a_small_stack() {
    let mut body = vec![load(0, access(0, &[1]))];
    for at in 0..MAX_STATEMENTS as u32 - 2 {
        body.push(Stmt::Unary { op: Unary::Neg, x: Var(at) });
    }
    body.push(store(1, access(0, &[1]), MAX_STATEMENTS as u32 - 2));
    let kernel = program(&[100], 0, vec![arg(100, Mode::Read), arg(100, Mode::Write)], body);
    let work = move || {
        assert_eq!(kernel.verify(), Ok(()));
        kernel.scratch_bytes(ScratchFor::Cpu { threads: 2 })
    };
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(work).expect("a thread");
    assert!(thread.join().expect("no overflow") > 0);
}

#[test]
fn a_long_chain_of_folds_is_refused() {
    let chain = |folds: usize| {
        let mut body = vec![load(0, access(0, &[0, 1]))];
        for at in 0..folds {
            body.push(Stmt::Reduce { op: Fold::Sum, x: Var(2 * at as u32) });
            body.push(Stmt::Binary { op: Binary::Add, x: Var(0), y: Var(2 * at as u32 + 1) });
        }
        body.push(store(1, access(0, &[100_000, 1]), 2 * folds as u32));
        program(&[2, 100_000], 1, vec![arg(100_000, Mode::Read), arg(200_000, Mode::Write)], body)
    };
    assert_eq!(chain(MAX_LEVELS).verify(), Ok(()));
    assert!(refusal(&chain(MAX_LEVELS + 1)).contains("too many folds"));
}

/// One head's attention over `n` positions of one number each.
fn attention(n: u64, softcap: Option<f32>) -> Attention {
    let heads = Heads { elements: n, offset: 0, batch: n, head: n, position: 1 };
    Attention {
        batch: 1,
        heads: 1,
        kv_heads: 1,
        q_len: n,
        kv_len: n,
        depth: 1,
        v_depth: 1,
        scale: FloatBits(0.5f32.to_bits()),
        softcap: softcap.map(|c| FloatBits(c.to_bits())),
        mask: Mask { causal: true, window: None, align_end: false },
        bias: None,
        dtype: DType::F32,
        q: heads,
        k: heads,
        v: heads,
        o: heads,
        grads: [heads; 4],
    }
}

#[test]
fn a_soft_cap_is_a_positive_number() {
    assert_eq!(Kernel::AttentionGrad(attention(16, Some(30.0))).verify(), Ok(()));
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        assert!(refusal(&Kernel::Attention(attention(16, Some(cap)))).contains("a soft cap must be a positive number"), "{cap}");
        assert!(refusal(&Kernel::AttentionGrad(attention(16, Some(cap)))).contains("a soft cap must be a positive number"), "{cap}");
    }
}
