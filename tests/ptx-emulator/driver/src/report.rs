//! What happened, for tests to read.

use std::collections::BTreeMap;
use std::path::Path;

/// Counts, faults and leaks of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes of each device allocation, in order.
    pub allocations: Vec<u64>,
    /// Most bytes of device memory at one time.
    pub peak_bytes: u64,
    pub kernels: u64,
    pub copies_in: u64,
    pub copies_out: u64,
    /// Graphs captured, and their launches.
    pub graphs: u64,
    pub graph_launches: u64,
    /// Waits of the host.
    pub waits: u64,
    pub faults: Vec<String>,
    pub leaks: Vec<String>,
    /// Seconds spent interpreting, by entry.
    pub seconds: BTreeMap<String, f64>,
}

impl Report {
    /// Takes note of a fault and tells whoever watches.
    pub fn fault(&mut self, reason: String) {
        eprintln!("driver stand-in: {reason}");
        self.faults.push(reason);
    }

    /// Writes the report as JSON. A log that cannot be written is said on stderr: the program under test is not to notice.
    pub fn write(&self, to: &Path) {
        let json = serde_json::json!({
            "allocations": self.allocations, "peak_bytes": self.peak_bytes, "kernels": self.kernels, "copies_in": self.copies_in,
            "copies_out": self.copies_out, "graphs": self.graphs, "graph_launches": self.graph_launches, "waits": self.waits,
            "faults": self.faults, "leaks": self.leaks, "seconds": self.seconds,
        });
        if let Err(e) = std::fs::write(to, format!("{json:#}\n")) {
            eprintln!("driver stand-in: {}: {e}", to.display());
        }
    }
}
