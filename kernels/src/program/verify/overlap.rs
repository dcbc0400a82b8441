//! Whether affine maps over boxes hit an element twice.
//!
//! A map is shown to be one-to-one by the usual order of strides: sorted by size, each larger than all smaller ones can reach. Two
//! maps with the same strides are two boxes of one larger map, if that one is one-to-one. What these miss is counted out, point
//! by point, as far as a kernel's allowance goes.

/// An affine map on a box: element `offset + sum(stride * index)` for `lower <= index < upper` in each dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub offset: i128,
    /// `(stride, lower, upper)` of the dimensions, `lower < upper`.
    pub dims: Vec<(i128, i128, i128)>,
}

/// Smallest and largest element.
pub type Bounds = (i128, i128);

/// Most points that are counted out for one kernel.
const COUNTED: i128 = 1 << 17;

impl Image {
    /// Smallest and largest element. `None` on overflow.
    pub fn bounds(&self) -> Option<Bounds> {
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

    /// The elements in ascending order, one for each point.
    fn elements(&self) -> Vec<i128> {
        let mut all = self.dims.iter().fold(vec![self.offset], |all, &(stride, lower, upper)| {
            all.iter().flat_map(|&at| (lower..upper).map(move |i| at + i * stride)).collect()
        });
        all.sort_unstable();
        all
    }
}

/// Proves facts about the maps of one kernel; what it cannot prove it denies. Its bounds are known: see [`Image::bounds`].
pub struct Prover {
    /// Points that may still be counted out.
    allowance: i128,
}

impl Prover {
    pub fn new() -> Prover {
        Prover { allowance: COUNTED }
    }

    fn affords(&mut self, points: i128) -> bool {
        let affords = points <= self.allowance;
        self.allowance -= if affords { points } else { 0 };
        affords
    }

    /// True if the map is shown to hit no element twice.
    pub fn one_to_one(&mut self, map: &Image) -> bool {
        let map = map.normal();
        // A dimension that moves nothing hits each element again.
        let still = map.dims.first().is_some_and(|d| d.0 == 0);
        ordered(&map.dims) || (!still && self.affords(map.points()) && map.elements().windows(2).all(|pair| pair[0] != pair[1]))
    }

    /// True if the two are shown to share no element.
    pub fn apart(&mut self, a: &Image, b: &Image) -> bool {
        match (a.bounds(), b.bounds()) {
            (Some(a), Some(b)) if a.1 < b.0 || b.1 < a.0 => return true,
            (Some(_), Some(_)) => {}
            _ => return false,
        }
        if let Some(apart) = apart_as_boxes(a, b).or_else(|| apart_as_boxes(b, a)) {
            return apart;
        }
        let steps = a.dims.iter().chain(&b.dims).fold(0, |g, d| gcd(g, d.0.abs()));
        if steps > 0 && (a.offset - b.offset) % steps != 0 {
            return true;
        }
        if !self.affords(a.points().saturating_add(b.points())) {
            return false;
        }
        let (mine, others) = (a.elements(), b.elements());
        others.iter().all(|e| mine.binary_search(e).is_err())
    }

    /// True if the two are shown to share an element only at a point that both have: both are one map, which is one-to-one on a box
    /// that holds both of theirs.
    pub fn same_points(&mut self, a: &Image, b: &Image) -> bool {
        if a.dims.len() != b.dims.len() {
            return false;
        }
        let mut hull = Image { offset: 0, dims: Vec::with_capacity(a.dims.len()) };
        // How far the second map's elements lie from the first's.
        let mut distance = b.offset - a.offset;
        for (x, y) in a.dims.iter().zip(&b.dims) {
            let (lower, upper) = (x.1.min(y.1), x.2.max(y.2));
            if upper - lower == 1 {
                distance += (y.0 - x.0) * lower;
            } else if x.0 == y.0 {
                hull.dims.push((x.0, lower, upper));
            } else {
                return false;
            }
        }
        distance == 0 && self.one_to_one(&hull)
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
