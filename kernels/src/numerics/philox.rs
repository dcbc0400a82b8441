//! Counter-based random numbers: Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

/// What the counter's words are multiplied by.
pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by from round to round.
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
pub(crate) const ROUNDS: u32 = 10;

/// Four random words for a key and a counter.
#[inline(always)]
pub fn philox(mut key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    let product = |m: u32, x: u32| {
        let p = u64::from(m) * u64::from(x);
        ((p >> 32) as u32, p as u32)
    };
    for _ in 0..ROUNDS {
        let ((h0, l0), (h1, l1)) = (product(MULTIPLIERS[0], c[0]), product(MULTIPLIERS[1], c[2]));
        c = [h1 ^ c[1] ^ key[0], l1, h0 ^ c[3] ^ key[1], l0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_agrees_with_the_published_vectors() {
        assert_eq!(philox([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let f = u32::MAX;
        assert_eq!(philox([f, f], [f; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }
}
