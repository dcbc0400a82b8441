//! Whether affine maps over boxes hit an element twice.
//!
//! A map is shown to be one-to-one by the usual order of strides: sorted by size, each larger than all smaller ones can reach. Two
//! maps with the same strides are two boxes of one larger map, if that one is one-to-one. What these miss is counted out, point
//! by point, when there are few.

use std::collections::HashSet;

/// An affine map on a box: element `offset + sum(stride * index)` for `lower <= index < upper` in each dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub offset: i128,
    /// `(stride, lower, upper)` of the dimensions, `lower < upper`.
    pub dims: Vec<(i128, i128, i128)>,
}

/// Most points that are counted out one by one.
const FEW: i128 = 1 << 16;

impl Image {
    /// Smallest and largest element. `None` on overflow.
    pub fn bounds(&self) -> Option<(i128, i128)> {
        self.dims.iter().try_fold((self.offset, self.offset), |(low, high), &(stride, lower, upper)| {
            let (first, last) = (stride.checked_mul(lower)?, stride.checked_mul(upper - 1)?);
            Some((low.checked_add(first.min(last))?, high.checked_add(first.max(last))?))
        })
    }

    /// The map without the dimensions of one index, from lower bounds of 0, strides positive and ascending.
    fn normal(&self) -> Image {
        let mut offset = self.offset;
        let mut dims = Vec::new();
        for &(stride, lower, upper) in &self.dims {
            offset += stride * if stride < 0 { upper - 1 } else { lower };
            if upper - lower > 1 {
                dims.push((stride.abs(), 0, upper - lower));
            }
        }
        dims.sort_unstable();
        Image { offset, dims }
    }

    fn points(&self) -> i128 {
        self.dims.iter().fold(1i128, |n, d| n.saturating_mul(d.2 - d.1))
    }

    fn elements(&self) -> Vec<i128> {
        self.dims.iter().fold(vec![self.offset], |all, &(stride, lower, upper)| {
            all.iter().flat_map(|&at| (lower..upper).map(move |i| at + i * stride)).collect()
        })
    }

    /// True if the map is shown to hit no element twice.
    pub fn one_to_one(&self) -> bool {
        let map = self.normal();
        if ordered(&map.dims) {
            return true;
        }
        if map.points() > FEW {
            return false;
        }
        let elements = map.elements();
        elements.iter().collect::<HashSet<_>>().len() == elements.len()
    }

    /// True if the two are shown to share no element.
    pub fn apart(&self, other: &Image) -> bool {
        match (self.bounds(), other.bounds()) {
            (Some(a), Some(b)) if a.1 < b.0 || b.1 < a.0 => return true,
            (Some(_), Some(_)) => {}
            _ => return false,
        }
        if let Some(apart) = apart_as_boxes(self, other).or_else(|| apart_as_boxes(other, self)) {
            return apart;
        }
        let steps = self.dims.iter().chain(&other.dims).fold(0, |g, d| gcd(g, d.0.abs()));
        if steps > 0 && (self.offset - other.offset) % steps != 0 {
            return true;
        }
        if self.points() > FEW || other.points() > FEW {
            return false;
        }
        let mine: HashSet<i128> = self.elements().into_iter().collect();
        other.elements().iter().all(|e| !mine.contains(e))
    }
}

/// True if each stride, ascending, is larger than what the smaller ones reach.
fn ordered(dims: &[(i128, i128, i128)]) -> bool {
    let mut reach = 0i128;
    dims.iter().all(|&(stride, _, extent)| {
        let above = stride > reach;
        reach += stride * (extent - 1);
        above
    })
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whether two maps of the same strides are apart, where they are boxes of one map that is one-to-one.
fn apart_as_boxes(a: &Image, b: &Image) -> Option<bool> {
    let same = a.dims.len() == b.dims.len() && a.dims.iter().zip(&b.dims).all(|(x, y)| x.0 == y.0);
    if !same {
        return None;
    }
    // Write the distance of the offsets in the strides, largest first: b's box is a's, shifted.
    let mut order: Vec<usize> = (0..a.dims.len()).filter(|&d| a.dims[d].0 != 0).collect();
    order.sort_unstable_by_key(|&d| std::cmp::Reverse(a.dims[d].0.abs()));
    let mut rest = b.offset - a.offset;
    let mut hull = Image { offset: 0, dims: Vec::new() };
    let mut disjoint = false;
    for d in order {
        let (stride, low, high) = a.dims[d];
        let step = rest.div_euclid(stride.abs()) * stride.signum();
        rest -= step * stride;
        let (other_low, other_high) = (b.dims[d].1 + step, b.dims[d].2 + step);
        disjoint |= high <= other_low || other_high <= low;
        hull.dims.push((stride, low.min(other_low), high.max(other_high)));
    }
    (rest == 0 && ordered(&hull.normal().dims)).then_some(disjoint)
}
