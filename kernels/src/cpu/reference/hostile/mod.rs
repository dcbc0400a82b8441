//! Kernels that no compiler would write: they are refused, or run inside their buffers and agree with the reference.

mod bend;
mod families;

use super::fence::Side;
use super::{Data, Random, attention, contract, fenced, index, quantize, row, same, scaled_contract, update, window};
use crate::program::*;
use crate::{DType, KernelError};

/// What became of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Refused,
    /// Verified, and not run: it would take long.
    Large,
    /// Run; its data was out of range.
    Failed,
    /// Run, and compared with the reference.
    Ran,
}

/// Makes a kernel of bytes and a small one of its kind of none, bends it, and runs what verifies between forbidden pages, on one
/// thread and on two, from different contents of what it has to write first.
///
/// # Panics
/// Where the two runs differ, what is read is written, anything beside a buffer is, or the reference disagrees. A touched page ends
/// the process.
pub fn check(data: &[u8]) -> Outcome {
    let mut random = Random::of_bytes(data);
    let kernel = families::kernel(&mut random);
    match bend::bent(&kernel, &mut random) {
        Some(kernel) => check_kernel(&kernel, &mut random),
        None => Outcome::Refused,
    }
}

/// The kernel that [`check`] makes of bytes, as text; `None` where bending left none.
pub fn describe(data: &[u8]) -> Option<String> {
    let mut random = Random::of_bytes(data);
    let kernel = families::kernel(&mut random);
    bend::bent(&kernel, &mut random).map(|kernel| kernel.to_string())
}

fn check_kernel(kernel: &Kernel, random: &mut Random) -> Outcome {
    if kernel.verify().is_err() {
        return Outcome::Refused;
    }
    if !small(kernel) {
        return Outcome::Large;
    }
    let inputs = inputs(kernel, random, 0xff);
    let (args, mut others) = (kernel.args(), inputs.clone());
    for (arg, data) in args.iter().zip(&mut others).filter(|(arg, _)| arg.mode == Mode::Write) {
        data.bytes = vec![0x55; arg.bytes() as usize];
    }
    let runs = [fenced(kernel, &inputs, 1, Side::Start, 0xff), fenced(kernel, &others, 2, Side::End, 0x55)];
    let [first, second] = match runs {
        [Ok(first), Ok(second)] => [first, second],
        [Err(KernelError::IndexOutOfRange { .. }), Err(KernelError::IndexOutOfRange { .. })] => return Outcome::Failed,
        [first, second] => panic!("a verified kernel failed: {:?}, {:?}\n{kernel}", first.err(), second.err()),
    };
    for (i, arg) in args.iter().enumerate() {
        let untouched = |(at, (x, y)): (usize, (&u8, &u8))| x == y || (*x == inputs[i].bytes[at] && *y == others[i].bytes[at]);
        let alike = first[i].bytes.iter().zip(&second[i].bytes).enumerate().all(untouched);
        assert!(alike, "argument {i} depends on threads, scratch, or what it held:\n{kernel}");
        assert!(arg.mode != Mode::Read || first[i] == inputs[i], "argument {i} was written:\n{kernel}");
    }
    compare(kernel, &inputs, &first).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    Outcome::Ran
}

/// Small whole numbers, so that sums are exact whatever their order; `poison` in what is only written.
fn inputs(kernel: &Kernel, random: &mut Random, poison: u8) -> Vec<Data> {
    // Indices are mostly in range.
    let mut random = Random::new(random.below(1 << 32));
    let least = if random.once_in(8) { -1.0 } else { 0.0 };
    let mut value = |dtype: DType| match dtype {
        DType::I64 | DType::I32 => random.below(3) as f32 + least,
        DType::Bool => random.below(2) as f32,
        _ => random.below(9) as f32 - 4.0,
    };
    let content = |(i, arg): (usize, &Arg)| {
        if arg.mode == Mode::Write {
            return Data { dtype: arg.dtype, bytes: vec![poison; arg.bytes() as usize] };
        }
        let scales = matches!(kernel, Kernel::ScaledContract(_)) && (i == 1 || i == 3);
        let attention = matches!(kernel, Kernel::Attention(_) | Kernel::AttentionGrad(_)) && arg.dtype.is_float();
        let values: Vec<f32> = (0..arg.elements)
            .map(|_| match value(arg.dtype) {
                x if scales => x.exp2(),
                x if attention => x / 4.0,
                x => x,
            })
            .collect();
        Data::new(arg.dtype, &values)
    };
    kernel.args().iter().enumerate().map(content).collect()
}

/// Compares every argument with the reference's.
fn compare(kernel: &Kernel, inputs: &[Data], out: &[Data]) -> Result<(), String> {
    let last = inputs.len() - 1;
    let values = |data: &[Data]| data.iter().map(Data::values).collect::<Vec<_>>();
    let exactly = |i: usize, expected: Vec<f64>| {
        let rounded: Vec<f32> = expected.iter().map(|x| *x as f32).collect();
        same(&out[i], &Data::new(out[i].dtype, &rounded)).map_err(|e| format!("argument {i}: {e}"))
    };
    match kernel {
        Kernel::Row(p) => {
            let expected = row::reference(p, inputs);
            let mut each = out.iter().zip(&expected).enumerate();
            each.try_for_each(|(i, (x, y))| same(x, y).map_err(|e| format!("argument {i}: {e}")))
        }
        Kernel::Contract(k) => exactly(last, contract::reference(k, inputs)),
        // Scales spread the products over more bits than a long sum has.
        Kernel::ScaledContract(k) if k.k > 1024 => near(&out[last], &scaled_contract::reference(k, inputs), "C"),
        Kernel::ScaledContract(k) => exactly(last, scaled_contract::reference(k, inputs)),
        // Codes may lie a step apart, as the reference's tests allow.
        Kernel::Update(k) if k.moments == DType::E4m3 => Ok(()),
        Kernel::Update(k) => {
            let expected = update::reference(k, inputs);
            let mut each = out.iter().zip(&expected).enumerate();
            each.try_for_each(|(i, (x, y))| same(x, y).map_err(|e| format!("argument {i}: {e}")))
        }
        Kernel::Quantize(k) => {
            let source: Vec<f32> = inputs[0].values().iter().map(|x| *x as f32).collect();
            let expected = quantize::expected(k, &source);
            let mut each = out[1..].iter().zip(&expected).enumerate();
            each.try_for_each(|(i, (x, y))| if x == y { Ok(()) } else { Err(format!("output {i} differs")) })
        }
        Kernel::Attention(k) => {
            let (o, lse) = attention::forward(k, &values(&inputs[..last - 1]), inputs[last - 1].values());
            near(&out[last - 1], &o, "o").and_then(|()| near(&out[last], &lse, "lse"))
        }
        Kernel::AttentionGrad(k) => {
            let given = values(inputs);
            let first = last - 5;
            let known = [&given[first][..], &given[first + 1], &given[first + 2]];
            let grads = [3, 4, 5].map(|i| given[first + i].clone());
            let expected = attention::backward(k, &given[..first], known, grads);
            let mut each = expected.iter().zip(["dq", "dk", "dv"]).enumerate();
            each.try_for_each(|(i, (y, name))| near(&out[first + 3 + i], y, name))
        }
        Kernel::Conv(k) => exactly(last, window::conv_reference(k, inputs)),
        Kernel::Pool(k) => near(&out[last], &window::pool_reference(k, &inputs[0].values(), &inputs[1].values()), "the result"),
        Kernel::ScatterAdd(k) => exactly(last, index::scatter_reference(k, inputs)),
        Kernel::Scan(k) => exactly(last, index::scan_reference(k, inputs)),
    }
}

/// Compares within the rounding of exponentials and quotients; gives way where numbers leave the range of f32.
fn near(x: &Data, y: &[f64], name: &str) -> Result<(), String> {
    let largest = y.iter().filter(|y| y.is_finite()).fold(0f64, |m, y| m.max(y.abs()));
    if largest > 1e30 {
        return Ok(());
    }
    let allowed = (1.0 + largest) * if x.dtype == DType::F32 { 1e-4 } else { 2e-2 };
    let differs = |(_, (x, y)): &(usize, (f64, &f64))| !(x == *y || (x.is_nan() && y.is_nan()) || (x - **y).abs() <= allowed);
    match x.values().into_iter().zip(y).enumerate().find(differs) {
        Some((at, (x, y))) => Err(format!("element {at} of {name} is {x}, expected {y}")),
        None => Ok(()),
    }
}

/// True for a kernel that runs in no time, in the reference too.
fn small(kernel: &Kernel) -> bool {
    let product = |factors: &[u64]| factors.iter().fold(1u64, |v, f| v.saturating_mul((*f).max(1)));
    let bytes = kernel.args().iter().fold(0u64, |sum, a| sum.saturating_add(a.bytes())).saturating_add(kernel.scratch_bytes(TWO));
    let windows = |w: &Window| product(&[w.kernel[0], w.kernel[1], w.output[0], w.output[1]]);
    let work = match kernel {
        Kernel::Row(p) => product(&[product(&p.space), p.body.len() as u64]),
        Kernel::Contract(k) => product(&[product(&k.batch), k.m, k.n, k.k]),
        Kernel::ScaledContract(k) => product(&[k.m, k.n, k.k]),
        Kernel::Attention(k) | Kernel::AttentionGrad(k) => product(&[k.batch, k.heads, k.kv_heads, k.q_len, k.kv_len, k.depth, k.v_depth]),
        Kernel::Conv(k) => product(&[windows(&k.window), k.batch, k.cin, k.cout]),
        Kernel::Pool(k) => product(&[windows(&k.window), k.planes]),
        Kernel::ScatterAdd(k) => product(&[k.outer, k.picks, k.inner]).saturating_add(product(&[k.outer, k.extent, k.inner])),
        Kernel::Scan(k) => product(&[k.outer, k.extent, k.inner]),
        Kernel::Quantize(k) => product(&[k.rows, k.cols]),
        Kernel::Update(k) => k.elements,
    };
    bytes < 1 << 22 && work < 1 << 20
}

const TWO: ScratchFor = ScratchFor::Cpu { threads: 2 };

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn a_bent_kernel_is_refused_or_stays_inside_its_buffers_and_agrees_with_the_reference(
            data in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            check(&data);
        }

        #[test]
        fn a_kernel_of_each_family_verifies_and_comes_back_from_its_text(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let kernel = families::kernel(&mut Random::of_bytes(&data));
            prop_assert_eq!(kernel.verify(), Ok(()), "{}", kernel);
            prop_assert_eq!(kernel.to_string().parse(), Ok(kernel.clone()));
        }
    }
}
