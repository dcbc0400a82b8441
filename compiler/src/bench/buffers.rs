//! Buffers to pack, in the format of MiniMalloc: `id,lower,upper,size`, alive in `[lower, upper)`.

use fp8c_solve::pack::Span;
use std::collections::HashSet;
use std::fmt::Write;

/// Buffers of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    pub ids: Vec<String>,
    pub spans: Vec<Span>,
}

/// The columns, in the order of [`Row`].
const COLUMNS: [&str; 4] = ["id", "lower", "upper", "size"];

/// Largest size of a buffer: sums of as many as fit a file do not overflow.
const MAX_SIZE: u64 = 1 << 40;

struct Row {
    id: String,
    lower: u64,
    upper: u64,
    size: u64,
}

impl Buffers {
    /// Reads a file's text.
    ///
    /// # Errors
    /// One sentence, with the line, on the first that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, l)| !l.is_empty());
        let (_, head) = lines.next().ok_or("there is no line in it")?;
        let names: Vec<&str> = head.split(',').map(str::trim).collect();
        let mut at = [0; COLUMNS.len()];
        for (at, column) in at.iter_mut().zip(COLUMNS) {
            *at = names.iter().position(|n| n == &column).ok_or_else(|| format!("its first line has no column '{column}'"))?;
        }
        let rows: Vec<Row> = lines.map(|(n, line)| row(line, at).map_err(|e| format!("line {n}: {e}"))).collect::<Result<_, _>>()?;
        let mut seen = HashSet::new();
        if let Some(twice) = rows.iter().find(|r| !seen.insert(&r.id)) {
            return Err(format!("two buffers have the id '{}'", twice.id));
        }
        let time = Times::of(&rows);
        let spans = rows.iter().map(|r| Span { first: time.at(r.lower), last: time.at(r.upper) - 1, bytes: r.size }).collect();
        Ok(Buffers { ids: rows.into_iter().map(|r| r.id).collect(), spans })
    }

    /// The text of a file of offsets, in the order of the buffers.
    pub fn offsets(&self, offsets: &[u64]) -> String {
        let mut out = "id,offset\n".to_string();
        for (id, offset) in self.ids.iter().zip(offsets) {
            let _ = writeln!(out, "{id},{offset}");
        }
        out
    }
}

fn row(line: &str, [id, lower, upper, size]: [usize; 4]) -> Result<Row, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let field = |at: usize, column: &str| fields.get(at).copied().ok_or_else(|| format!("there is no {column}"));
    let number = |at, column| -> Result<u64, String> {
        let text = field(at, column)?;
        text.parse().map_err(|_| format!("{column} must be a whole number, not '{text}'"))
    };
    let row =
        Row { id: field(id, "id")?.into(), lower: number(lower, "lower")?, upper: number(upper, "upper")?, size: number(size, "size")? };
    if row.lower >= row.upper {
        return Err(format!("'{}' ends at {}, before it begins at {}", row.id, row.upper, row.lower));
    }
    if row.size > MAX_SIZE {
        return Err(format!("'{}' has {} bytes, more than {MAX_SIZE}", row.id, row.size));
    }
    Ok(row)
}

/// Times as events: themselves where they fit, else their numbers in order, which say as well who meets whom.
enum Times {
    Same,
    Numbered(Vec<u64>),
}

impl Times {
    fn of(rows: &[Row]) -> Self {
        if rows.iter().all(|r| r.upper <= u32::MAX as u64) {
            return Times::Same;
        }
        let mut times: Vec<u64> = rows.iter().flat_map(|r| [r.lower, r.upper]).collect();
        times.sort_unstable();
        times.dedup();
        Times::Numbered(times)
    }

    fn at(&self, time: u64) -> u32 {
        match self {
            Times::Same => time as u32,
            Times::Numbered(times) => times.partition_point(|&t| t < time) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_may_stand_in_any_order_and_ends_are_exclusive() {
        let b = Buffers::parse("size,id,lower,upper\n8,a,0,3\n 16 , b, 2,5\n\n").unwrap();
        assert_eq!(b.ids, ["a", "b"]);
        assert_eq!(b.spans, [Span { first: 0, last: 2, bytes: 8 }, Span { first: 2, last: 4, bytes: 16 }]);
        assert_eq!(b.offsets(&[0, 8]), "id,offset\na,0\nb,8\n");
    }

    #[test]
    fn times_too_large_for_an_event_keep_their_order() {
        let b = Buffers::parse("id,lower,upper,size\na,0,18446744073709551615,1\nb,5,6000000000,1\nc,6000000000,6000000001,1\n").unwrap();
        assert!(b.spans[0].meets(&b.spans[1]) && b.spans[0].meets(&b.spans[2]) && !b.spans[1].meets(&b.spans[2]));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let said = |text: &str| Buffers::parse(text).unwrap_err();
        assert_eq!(said(""), "there is no line in it");
        assert_eq!(said("id,lower,upper\n"), "its first line has no column 'size'");
        assert_eq!(said("id,lower,upper,size\na,0,1\n"), "line 2: there is no size");
        assert_eq!(said("id,lower,upper,size\na,0,1,-4\n"), "line 2: size must be a whole number, not '-4'");
        assert_eq!(said("id,lower,upper,size\na,3,3,4\n"), "line 2: 'a' ends at 3, before it begins at 3");
        assert_eq!(said("id,lower,upper,size\na,0,1,4\na,0,1,4\n"), "two buffers have the id 'a'");
        assert_eq!(said("id,lower,upper,size\na,0,1,2000000000000\n"), "line 2: 'a' has 2000000000000 bytes, more than 1099511627776");
    }
}
