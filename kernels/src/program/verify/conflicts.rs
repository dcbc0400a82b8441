//! Statements that touch one element: none may write what another point, or a later statement, reads or writes.
//!
//! Accesses of one argument are visited in the order of their first elements, so that only those whose ranges overlap are compared;
//! how many pairs that may be is limited.

use super::overlap::{Bounds, Image, Prover};

/// Most pairs of accesses with overlapping ranges. The compiler's programs have a few hundred: the parts of a concatenation.
const MAX_PAIRS: usize = 1 << 13;

/// The elements that one statement reads or writes.
pub struct Touch {
    /// The statement.
    pub at: usize,
    pub arg: usize,
    pub write: bool,
    /// `None` for an access that depends on data.
    pub image: Option<Image>,
    pub bounds: Bounds,
}

/// Refuses two writes of one element, and reads of one that another point, or an earlier statement, writes.
pub fn conflicts(mut touches: Vec<Touch>, prover: &mut Prover) -> Result<(), String> {
    touches.sort_by_key(|t| (t.arg, t.bounds.0));
    let mut pairs = 0;
    for of_arg in touches.chunk_by(|a, b| a.arg == b.arg) {
        // What may still reach an access further on, by write; reads are looked at by writes alone.
        let mut open: [Vec<&Touch>; 2] = [Vec::new(), Vec::new()];
        for touch in of_arg {
            for others in &mut open[usize::from(!touch.write)..] {
                pairs += others.len();
                if pairs > MAX_PAIRS {
                    return Err(format!("argument {}: more than {MAX_PAIRS} pairs of accesses overlap", touch.arg));
                }
                others.retain(|other| other.bounds.1 >= touch.bounds.0);
                others.iter().try_for_each(|other| pair(touch, other, prover)).map_err(|e| format!("argument {}: {e}", touch.arg))?;
            }
            open[usize::from(touch.write)].push(touch);
        }
    }
    Ok(())
}

/// Compares two accesses of which one writes at least.
fn pair(a: &Touch, b: &Touch, prover: &mut Prover) -> Result<(), String> {
    let images = a.image.as_ref().zip(b.image.as_ref());
    if images.is_some_and(|(a, b)| prover.apart(a, b)) {
        return Ok(());
    }
    if a.write && b.write {
        return Err("two stores may hit one element".into());
    }
    let (write, read) = if a.write { (a, b) } else { (b, a) };
    // What one point reads before it writes the element.
    if read.at < write.at && images.is_some_and(|(a, b)| prover.same_points(a, b)) {
        return Ok(());
    }
    Err("a load may read what another point or an earlier store writes".into())
}
