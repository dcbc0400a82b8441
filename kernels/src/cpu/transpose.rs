//! Transposition of bytes, sixteen by sixteen.

const TILE: usize = 16;

/// Writes the transpose of `rows x cols` bytes, rows `cols` apart, to `cols` rows of `rows` bytes that are `stride` apart.
///
/// # Safety
/// Those rows are valid for writing, and nobody else touches them.
pub(crate) unsafe fn transpose(source: &[u8], cols: usize, out: *mut u8, stride: usize) {
    let rows = source.len() / cols.max(1);
    let (whole_rows, whole_cols) = (rows / TILE * TILE, cols / TILE * TILE);
    for j in (0..whole_cols).step_by(TILE) {
        for i in (0..whole_rows).step_by(TILE) {
            let mut lines = [[0u8; TILE]; TILE];
            for (line, row) in lines.iter_mut().zip(source[i * cols..].chunks(cols)) {
                line.copy_from_slice(&row[j..j + TILE]);
            }
            for (line, to) in square(lines).into_iter().zip(j..) {
                // SAFETY: sixteen bytes of row `to`.
                unsafe { out.add(to * stride + i).cast::<[u8; TILE]>().write_unaligned(line) };
            }
        }
    }
    for (i, row) in source.chunks_exact(cols.max(1)).enumerate() {
        let from = if i < whole_rows { whole_cols } else { 0 };
        for (j, byte) in row.iter().enumerate().skip(from) {
            // SAFETY: byte `i` of row `j`.
            unsafe { *out.add(j * stride + i) = *byte };
        }
    }
}

/// Transposes a square: each round of interleaving line `i` with line `i + 8` rotates the bits of a byte's place by one.
#[inline(always)]
fn square(mut lines: [[u8; TILE]; TILE]) -> [[u8; TILE]; TILE] {
    for _ in 0..4 {
        let mut next = [[0; TILE]; TILE];
        for i in 0..TILE / 2 {
            let (a, b) = (lines[i], lines[i + TILE / 2]);
            [next[2 * i], next[2 * i + 1]] = interleave(a, b);
        }
        lines = next;
    }
    lines
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleave(a: [u8; TILE], b: [u8; TILE]) -> [[u8; TILE]; 2] {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    let mut out = [[0; TILE]; 2];
    // SAFETY: every x86-64 processor has SSE2, and the arrays are sixteen bytes each.
    unsafe {
        let (a, b) = (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast()));
        _mm_storeu_si128(out[0].as_mut_ptr().cast(), _mm_unpacklo_epi8(a, b));
        _mm_storeu_si128(out[1].as_mut_ptr().cast(), _mm_unpackhi_epi8(a, b));
    }
    out
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn interleave(a: [u8; TILE], b: [u8; TILE]) -> [[u8; TILE]; 2] {
    let byte = |i: usize| if i % 2 == 0 { a[i / 2] } else { b[i / 2] };
    [std::array::from_fn(byte), std::array::from_fn(|i| byte(i + TILE))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_shape_is_transposed() {
        for (rows, cols) in [(1, 1), (16, 16), (17, 33), (128, 128), (5, 40), (40, 5), (0, 3)] {
            let source: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 251) as u8).collect();
            let stride = rows + 3;
            let mut out = vec![0xee; cols * stride];
            // SAFETY: the vector has `cols` rows of `stride`.
            unsafe { transpose(&source, cols, out.as_mut_ptr(), stride) };
            for (j, row) in out.chunks_exact(stride).enumerate() {
                assert!((0..rows).all(|i| row[i] == source[i * cols + j]), "{rows} x {cols}");
                assert!(row[rows..].iter().all(|b| *b == 0xee));
            }
        }
    }
}
